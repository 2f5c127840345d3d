"""Image files to pack: a folder with a sub-folder per class, or a CSV of paths and labels."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from aae_dist.data.format.patterns import IMAGE_SUFFIXES
from aae_dist.data.pack.sources import (
    Fields,
    PackOptions,
    PackSource,
    file_fields,
    read_file,
    sets_of,
    split,
)
from aae_dist.errors import DataError

COLUMNS = ("path", "label")


def folder_source(root: Path, options: PackOptions) -> PackSource:
    """Return the images in the sub-folders of `root`, labelled by the sorted names of these.

    Images in `root` itself have no labels, if no sub-folder has images. Hidden files and folders
    (.ipynb_checkpoints, ._photo.jpg) are ignored, and a folder without images is no class.

    Raises:
        DataError: There are no images, some lie deeper, or some lie next to sub-folders with
            images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder with a sub-folder for each class.")
    images = sorted(_images(root))
    classes = sorted({path.parts[0] for path in images if len(path.parts) > 1})
    deep = next((path for path in images if len(path.parts) > 2), None)
    if deep is not None:
        raise DataError(
            f"{root}: {deep.as_posix()} lies in a folder of a folder, so its class is not clear; "
            f"pack {root / deep.parts[0]} by itself if that holds the classes, or list paths and "
            "labels for `pack csv`."
        )
    if not images:
        raise DataError(
            f"{root}: no {', '.join(IMAGE_SUFFIXES)} file in it or its sub-folders; "
            "give a folder with a sub-folder for each class."
        )
    loose = [path.name for path in images if len(path.parts) == 1]
    if loose and classes:
        raise DataError(
            f"{root}: {loose[0]} and {len(loose) - 1} more lie next to the folders of the classes; "
            "move them into one, or remove them."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    found = [(root / path, numbers.get(path.parts[0])) for path in images]
    return _source(found, [path.as_posix() for path in images], classes, options)


def _images(root: Path) -> Iterator[Path]:
    """Yield the paths, below `root`, of image files. A class may be a link to a folder."""
    links = [path for path in root.iterdir() if path.is_symlink() and path.is_dir()]
    for top in (root, *(link for link in links if not link.name.startswith("."))):
        for folder, folders, files in os.walk(top):  # follows no other link: none leads in a circle
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                if path.suffix.lower() in IMAGE_SUFFIXES and name[0] != "." and path.is_file():
                    yield path.relative_to(root)


def csv_source(file: Path, options: PackOptions) -> PackSource:
    """Return the images that a CSV file with the columns path and label lists.

    Paths are relative to the CSV file's folder. Whole numbers are labels as they are; other labels
    are numbered in the order of their sorted names. Without a column label there are none.

    Raises:
        DataError: There is no such file or column, or a path is listed twice.
    """
    rows = _rows(file)
    paths = [row["path"] for row in rows]
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise DataError(f"{file}: lists {doubled[0]} twice; give each image once.")
    texts = [row.get("label") or "" for row in rows]
    labels, classes = numbered(texts, str(file))
    found = [(file.parent / path, label) for path, label in zip(paths, labels, strict=True)]
    return _source(found, paths, classes, options)


def numbered(texts: Sequence[str], where: str) -> tuple[list[int | None], list[str]]:
    """Return the label of each text, and the names of the classes where the texts are names.

    Raises:
        DataError: some texts are empty and others are not.
    """
    if not any(texts):
        return [None] * len(texts), []
    if not all(texts):
        raise DataError(f"{where}: line {texts.index('') + 2} has no label; others have.")
    try:
        return [int(text) for text in texts], []
    except ValueError:
        classes = sorted(set(texts))
        numbers = {name: number for number, name in enumerate(classes)}
        return [numbers[text] for text in texts], classes


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restkey="more")
            columns = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error}).") from None
    if "path" not in columns:
        raise DataError(
            f"{file}: the first line must name the columns {', '.join(COLUMNS)} "
            f"(got {', '.join(columns)!r:.200})."
        )
    if not rows or not all(row["path"] for row in rows):
        raise DataError(f"{file}: lists no image, or a line without a path.")
    return rows


def _source(
    files: Sequence[tuple[Path, int | None]],
    names: Sequence[str],
    classes: Sequence[str],
    options: PackOptions,
) -> PackSource:
    sizes: set[tuple[int, int]] = set()

    def sample(place: int, number: int) -> Fields:
        path, label = files[number]
        fields, size = file_fields(f"{place:08d}", read_file(path), str(path), options)
        sizes.add(size)
        return fields if label is None else {**fields, "cls": str(label).encode()}

    def advice() -> str:
        if len(sizes) < 2:
            return ""
        low, high = ([f(side) for side in zip(*sizes, strict=True)] for f in (min, max))
        return (
            f"The images have {len(sizes)} sizes, from {low[0]} to {high[0]} pixels high and from "
            f"{low[1]} to {high[1]} wide, and are kept as they are: train with data.image_size=N, "
            "or pack them again with --image-size N."
        )

    return PackSource(sets_of(split(names, options), sample), classes, advice)
