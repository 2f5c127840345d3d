"""Sources to pack: what all share, and those made of files of the user's own: folder, csv, npy."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.decode.images import Resize, checked_header, decode_image
from aae_dist.data.format.patterns import IMAGE_SUFFIXES
from aae_dist.errors import DataError, SampleError
from aae_dist.utils.arrays import npy_bytes, png_bytes

Fields = dict[str, str | bytes]  # as WebDataset writes it: {"__key__": ..., "png": ..., "cls": ...}
Pixels = NDArray[np.uint8]  # [H, W] grey or [H, W, 3] colour

FIELDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`."""

    shard_samples: int = 5000  # maximum samples per shard
    image_size: int | None = None  # pixels, as by `data.image_size`; None keeps images as they are
    crop_size: int | None = None  # centre square that is cropped before, in pixels
    validation_fraction: float = 0.1  # folder, csv, npy: fraction of the samples for validation
    seed: int = 0  # folder, csv and npy: seed of the split and of the order
    labels: Path | None = None  # npy: array of integers, one per row

    @property
    def resize(self) -> Resize:
        """How images are brought to `image_size`."""
        return Resize("none" if self.image_size is None else "cover", self.crop_size)

    @property
    def changes_images(self) -> bool:
        """Whether images are scaled or cropped, so that files are written again."""
        return self.image_size is not None or self.crop_size is not None


@dataclass(frozen=True)
class SampleSet:
    """Samples to write; they can be iterated once."""

    num_samples: int
    samples: Iterator[Fields]


@dataclass(frozen=True)
class PackSource:
    """The sets of a source by name, and the names of its classes, if any."""

    sets: dict[str, SampleSet]
    classes: Sequence[str] = field(default=())
    advice: Callable[[], str] = str  # for the user when all samples are written, or an empty text


def split(names: Sequence[str], options: PackOptions) -> dict[str, list[int]]:
    """Return the numbers of the samples of each set, in the order to write them.

    The hash of a sample's name decides its set and its place, so that classes are mixed and a new
    sample moves none of the others to the other set. All names differ. Raises DataError if the
    fraction is not in [0, 1), or nothing is left for training.
    """
    fraction = options.validation_fraction
    if not 0 <= fraction < 1:
        raise DataError(f"The validation fraction must be in [0, 1) (got {fraction}).")
    # The seed 0 is no key: splits of earlier versions stay as they are.
    key = options.seed.to_bytes(8, "big") if options.seed else b""
    hashes = [
        blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=key).digest()
        for name in names
    ]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    limit = int(fraction * 2**64).to_bytes(9, "big")[1:]
    num_validation = sum(digest < limit for digest in hashes)
    chosen = {"train": order[num_validation:], "validation": order[:num_validation]}
    if not chosen["train"]:
        raise DataError("No sample is left for training; give more, or a smaller fraction.")
    return {name: numbers for name, numbers in chosen.items() if numbers}


def sets_of(
    numbers: dict[str, list[int]], sample: Callable[[int, int], Fields]
) -> dict[str, SampleSet]:
    """Return the sets whose samples `sample(place in the set, number in the source)` makes."""
    return {
        name: SampleSet(len(chosen), (sample(place, n) for place, n in enumerate(chosen)))
        for name, chosen in numbers.items()
    }


def image_fields(place: int, image: Pixels, label: int | None, options: PackOptions) -> Fields:
    """Return the sample of an image, as PNG; its place in its set becomes the key."""
    fields: Fields = {"__key__": f"{place:08d}", "png": png_bytes(resized(image, options))}
    if label is not None:
        fields["cls"] = str(label).encode()
    return fields


def resized(image: Pixels, options: PackOptions) -> Pixels:
    """Return the image as `data.image_size` and `data.crop_size` would make it."""
    if not options.changes_images:
        return image
    resize, size = options.resize, options.image_size
    height, width = image.shape[:2]
    wanted = (size, size) if size else resize.cropped(height, width)
    resize.check(height, width, wanted)
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    done = resize.apply(planes, wanted)
    return done[0] if image.ndim == 2 else np.ascontiguousarray(done.transpose(1, 2, 0))


def file_fields(
    key: str, data: bytes, name: str, options: PackOptions
) -> tuple[Fields, tuple[int, int]]:
    """Return the sample of an image file, and (height, width) of its image, which is upright.

    The file's bytes are kept unless the options ask for another size. The image is decoded in
    either case, as training decodes it: so the file is proven, and pixels that are scaled here
    equal those that are scaled in training. An error is a DataError that begins with `name`.
    """
    try:
        header, resize = checked_header(data), options.resize
        inner = resize.cropped(header.height, header.width)
        size = (options.image_size, options.image_size) if options.image_size else inner
        image = decode_image(data, (header.channels, *size), resize)
    except SampleError as error:
        if error.reason == "image":
            raise DataError(f"{name}: not a readable image ({error}); remove it.") from None
        raise DataError(f"{name}: {error}.") from None
    if not options.changes_images:
        return {"__key__": key, FIELDS[header.format]: data}, size
    plain = image[0] if header.channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    return {"__key__": key, "png": png_bytes(plain)}, size


def read_file(path: Path) -> bytes:
    """Return the file's bytes; DataError says why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}).") from None


COLUMNS = ("path", "label")


def folder_source(root: Path, options: PackOptions) -> PackSource:
    """Return the images in the sub-folders of `root`, labelled by the sorted names of these.

    Images in `root` itself have no labels, if no sub-folder has images. Hidden files and folders
    (.ipynb_checkpoints, ._photo.jpg) are ignored, and a folder without images is no class. Images
    that lie deeper, or next to sub-folders with images, are a DataError.
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
    """Return the label of each text, and the names of the classes where the texts are names."""
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


Array = NDArray[Any]
MAGIC = b"\x93NUMPY"  # first bytes of a .npy file


def npy_source(file: Path, options: PackOptions) -> PackSource:
    """Return the rows of an array, which is memory-mapped.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 are images, written as PNG.
    Other arrays, such as [N, D], are written as float32 in the field `npy`.
    """
    rows = _load(file)
    if rows.ndim < 2 or rows.ndim > 4 or rows.dtype.kind not in "uif" or not len(rows):
        raise DataError(
            f"{file}: an array of numbers with 2 to 4 dimensions is wanted, rows first "
            f"(got {rows.dtype} {rows.shape})."
        )
    labels = _labels(options.labels, len(rows))
    images = rows.dtype == np.uint8 and rows.ndim > 2

    def sample(place: int, number: int) -> Fields:
        label = None if labels is None else int(labels[number])
        if images:
            return image_fields(place, _image(rows[number], file), label, options)
        return _array_fields(place, rows[number], label, f"{file}, row {number}")

    return PackSource(sets_of(split([str(n) for n in range(len(rows))], options), sample))


def _load(file: Path) -> Array:
    try:
        loaded: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror or 'damaged'}); give the path of a .npy file."
        ) from None
    except (ValueError, EOFError):
        raise DataError(f"{file}: {_why_not(file)}; write it with numpy.save.") from None
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{file}: an archive; give a .npy file, which holds one array.")
    return loaded


def _why_not(file: Path) -> str:
    """Return why NumPy cannot read a file; its own message advises to unpickle it."""
    with file.open("rb") as opened:
        is_array = opened.read(len(MAGIC)) == MAGIC
    return "damaged, or an array of objects, not of numbers" if is_array else "not a .npy file"


def _labels(file: Path | None, num_rows: int) -> Array | None:
    if file is None:
        return None
    labels = _load(file)
    if labels.shape != (num_rows,) or labels.dtype.kind not in "ui":
        raise DataError(
            f"{file}: {num_rows} whole numbers are wanted, one for each row "
            f"(got {labels.dtype} {labels.shape})."
        )
    return labels


def _image(row: Array, file: Path) -> Array:
    """Return pixels [H, W] or [H, W, 3]."""
    if row.ndim == 3 and row.shape[-1] not in (1, 3) and row.shape[0] in (1, 3):
        row = row.transpose(1, 2, 0)
    if row.ndim == 3 and row.shape[-1] not in (1, 3):
        raise DataError(
            f"{file}: images need 1 or 3 channels (got rows of {row.shape}); give other arrays as "
            "float32 in [0, 1] with the channels first."
        )
    return np.ascontiguousarray(row[..., 0] if row.ndim == 3 and row.shape[-1] == 1 else row)


def _array_fields(place: int, row: Array, label: int | None, name: str) -> Fields:
    numbers = np.asarray(row, "<f4")
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: has numbers that are not finite; remove them.")
    fields: Fields = {"__key__": f"{place:08d}", "npy": npy_bytes(numbers)}
    return fields if label is None else {**fields, "cls": str(label).encode()}
