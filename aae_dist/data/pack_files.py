"""Image files to pack: a folder with a sub-folder for each class, or a CSV of paths and labels."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from aae_dist.data.pack_sources import (
    FIELDS,
    SUFFIXES,
    Fields,
    PackOptions,
    Source,
    image_fields,
    open_image,
    pixels,
    read_file,
    resized_or_named,
    sets_of,
    split,
)
from aae_dist.errors import DataError

COLUMNS = ("path", "label")


def folder_source(root: Path, options: PackOptions) -> Source:
    """Return the images below `root`, labelled by the sorted names of its sub-folders.

    Raises:
        DataError: There are no sub-folders or no images in them.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder with a sub-folder for each class.")
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    found = [
        (path, label)
        for label, folder in enumerate(classes)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not found:
        raise DataError(
            f"{root}: no {', '.join(SUFFIXES)} file in {len(classes)} sub-folders; "
            "give a folder with a sub-folder for each class."
        )
    names = [path.relative_to(root).as_posix() for path, _ in found]
    return _source(found, names, [folder.name for folder in classes], options)


def csv_source(file: Path, options: PackOptions) -> Source:
    """Return the images that a CSV file with the columns path and label lists.

    Paths count from the CSV file's folder. Whole numbers are labels as they are; of any other
    labels, the place among their sorted names is. Without a column label there are none.

    Raises:
        DataError: There is no such file or column, or a path is listed twice.
    """
    rows = _rows(file)
    paths = [row["path"] for row in rows]
    doubled = (
        {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else ()
    )
    if doubled:
        raise DataError(f"{file}: lists {min(doubled)} twice; give each image once.")
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
) -> Source:
    sets = sets_of(split(names, options), _sample_maker(files, options))
    return Source(sets, classes)


def _sample_maker(
    files: Sequence[tuple[Path, int | None]], options: PackOptions
) -> Callable[[int, int], Fields]:
    first: tuple[int, int] | None = None

    def sample(place: int, number: int) -> Fields:
        nonlocal first
        path, label = files[number]
        data = read_file(path)
        image, kind = open_image(data, str(path))
        if options.image_size is not None or options.crop_size is not None:
            small = resized_or_named(pixels(image), options, str(path))
            return image_fields(place, small, label)
        first = first or image.size
        if image.size != first:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels where others have "
                f"{first[0]} x {first[1]}; give --image-size to bring all to one size."
            )
        fields: Fields = {"__key__": f"{place:08d}", FIELDS[kind]: data}
        return fields if label is None else {**fields, "cls": str(label).encode()}

    return sample
