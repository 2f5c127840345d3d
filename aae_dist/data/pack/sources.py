"""Sources to pack: what all share, and those made of lists and arrays of the user's own."""

import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from aae_dist.data.bad_samples import UNUSED_TEXTS, Unused, UnusedKind
from aae_dist.data.decode.images import Note, Resize, checked_header, decode_image, ignore
from aae_dist.data.format.manifest import ClassMap
from aae_dist.data.pack import names
from aae_dist.errors import DataError, SampleError
from aae_dist.storage.local import open_regular
from aae_dist.utils import arrays, text

Fields = dict[str, str | bytes]  # as WebDataset writes it: {"__key__": ..., "png": ..., "cls": ...}
Pixels = np.typing.NDArray[np.uint8]  # [H, W] grey or [H, W, 3] colour

LABEL_FIELD = "cls"
FIELDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`."""

    shard_samples: int = 5000  # maximum samples per shard
    image_size: int | None = None  # pixels, as by `data.image_size`; None keeps images as they are
    crop_size: int | None = None  # centre square that is cropped before, in pixels
    validation_fraction: float = 0.1  # folder, csv, npy: fraction of the samples for validation
    seed: int = 0  # of the split and order of folder, csv and npy, and of the labelled samples
    labels: Path | None = None  # npy: array of integers, one per row
    classes: Path | None = None  # folder, csv and npy: JSON with the number of each class
    validation_root: Path | None = None  # folder and csv: the validation set, packed with the other
    labelled: int | None = None  # training samples that keep their label; None keeps all labels

    @cached_property
    def known_classes(self) -> ClassMap | None:
        """The class map in `classes`; DataError if it cannot be read."""
        return names.read_classes(self.classes)

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
    labels: list[int | None] = field(default_factory=list)
    """The number in the field `cls` of each sample; empty where they have none."""


@dataclass(frozen=True)
class PackSource:
    """The sets of a source by name, and the numbers of its classes by name, if any."""

    sets: dict[str, SampleSet]
    classes: ClassMap = field(default_factory=dict)
    advice: Callable[[], Sequence[str]] = list  # lines for the user when all samples are written
    is_split: bool = False  # whether the source itself has a validation set


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


def image_fields(number: int, image: Pixels, label: int | None, options: PackOptions) -> Fields:
    """Return the sample of an image, as PNG; its number in the source becomes the key."""
    fields: Fields = {"__key__": f"{number:08d}", "png": arrays.png_bytes(resized(image, options))}
    if label is not None:
        fields[LABEL_FIELD] = str(label).encode()
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
    key: str, data: bytes, name: str, options: PackOptions, note: Note = ignore
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
        image = decode_image(data, (header.channels, *size), resize, note)
    except SampleError as error:
        if error.reason == "image":
            raise DataError(f"{name}: not a readable image ({error}); remove it.") from None
        raise DataError(f"{name}: {error}.") from None
    if not options.changes_images:
        return {"__key__": key, FIELDS[header.format]: data}, size
    plain = image[0] if header.channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    return {"__key__": key, "png": arrays.png_bytes(plain)}, size


def read_file(path: Path) -> bytes:
    """Return the file's bytes; DataError says why it cannot be read."""
    name = f"{text.printable(str(path)):.300}"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _MAX_FILE_BYTES:
                return file.read()
    except OSError as error:
        raise DataError(f"{name}: cannot read the file ({error.strerror}).") from None
    raise DataError(f"{name}: {size} bytes are more than {_MAX_FILE_BYTES >> 20} MiB; remove it.")


COLUMNS = ("path", "label")
_MAX_FILE_BYTES = 512 << 20  # of one image


@dataclass(frozen=True)
class Found:
    """An image file to pack."""

    path: Path
    name: str
    """Path as the source names it, from which its key is made and which decides its set."""
    label: int | None

    def moved(self, prefix: Path) -> "Found":
        """Return the file with its name below `prefix`."""
        return replace(self, name=(prefix / self.name).as_posix())


def csv_source(file: Path, options: PackOptions) -> PackSource:
    """Return the images that a CSV file with the columns path and label lists.

    Paths are relative to the CSV file's folder. Whole numbers are labels as they are; other labels
    are numbered by `options.classes`, else in the order of their names. `options.validation_root`
    is a list of the validation images. Without a column label there are none.
    """
    files = {"train": file}
    if options.validation_root is not None:
        files["validation"] = options.validation_root
    rows = {name: _rows(each) for name, each in files.items()}
    texts = [row.get("label") or "" for each in rows.values() for row in each]
    where = " and ".join(map(str, files.values()))
    labels = names.labels_of_texts(texts, options.known_classes, where)
    numbers = iter(labels.numbers)
    sets = {
        name: [Found(files[name].parent / row["path"], row["path"], next(numbers)) for row in each]
        for name, each in rows.items()
    }
    return image_files(sets, labels.classes, options, [*_csv_notes(rows, labels)])


def _csv_notes(rows: Mapping[str, list[dict[str, str]]], labels: names.Labels) -> Iterator[str]:
    first = rows["train"][0]
    if unused := [column for column in first if column not in COLUMNS]:
        yield f"warning: the columns {', '.join(unused)!r:.200} are not used"
    if "label" not in first:
        yield "warning: there is no column label, so no image has one"
    elif labels.num_missing:
        yield f"warning: {missing_labels(labels.num_missing, len(labels.numbers))}"


def missing_labels(num_missing: int, total: int) -> str:
    """Return the line that says how many samples have no label."""
    return (
        f"{num_missing} of {total} labels are missing (empty, NaN or -1): these samples have none"
    )


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with (
            open_regular(file) as data,
            io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as lines,
        ):
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
    if len(set(columns)) < len(columns):
        raise DataError(f"{file}: two columns have one name; keep one of each.")
    if not rows or not all(row["path"] for row in rows):
        raise DataError(f"{file}: lists no image, or a line without a path.")
    for number, row in enumerate(rows, 2):
        if "more" in row:
            raise DataError(
                f"{file}: line {number} has more values than the {len(columns)} columns; put "
                "quotes around values with a comma."
            )
    doubled = [path for path, count in Counter(row["path"] for row in rows).items() if count > 1]
    if doubled:
        raise DataError(f"{file}: lists {doubled[0]} twice; give each image once.")
    return rows


def image_files(
    sets: Mapping[str, Sequence[Found]],
    classes: ClassMap,
    options: PackOptions,
    notes: Sequence[str] = (),
) -> PackSource:
    """Return the sets of image files; without a validation set, `split` makes one of `train`."""
    sizes: set[tuple[int, int]] = set()
    unused, numbers = Unused(), itertools.count()
    keys: dict[Found, str] = {}
    for each in sets.values():
        keys |= zip(each, names.keys_of([found.name for found in each]), strict=True)

    def sample(found: Found) -> Fields:
        path, label = found.path, found.label
        data, number = read_file(path), next(numbers)

        def note(_: int, kind: UnusedKind, detail: str) -> None:
            unused.add(kind, number, detail)

        fields, size = file_fields(keys[found], data, str(path), options, note)
        sizes.add(size)
        return fields if label is None else {**fields, LABEL_FIELD: str(label).encode()}

    def advice() -> list[str]:
        counts, total = unused.counts, next(numbers)
        lost = [f"warning: {n} of {total} {UNUSED_TEXTS[kind]}" for kind, n in counts.items()]
        return [*notes, *lost, *_sizes_advice(sizes)]

    parts: dict[str, list[Found]] = {}
    for name, found in sets.items():
        whole = name != "train" or "validation" in sets
        fraction = 0.0 if whole else options.validation_fraction
        chosen = split(
            [each.name for each in found], replace(options, validation_fraction=fraction)
        )
        parts[name] = [found[n] for n in chosen["train"]]
        if "validation" in chosen:
            parts["validation"] = [found[n] for n in chosen["validation"]]
    made = {
        name: SampleSet(len(part), map(sample, part), [found.label for found in part])
        for name, part in parts.items()
    }
    return PackSource(made, classes, advice, is_split="validation" in sets)


def _sizes_advice(sizes: Collection[tuple[int, int]]) -> Iterator[str]:
    if len(sizes) < 2:
        return
    low, high = ([f(side) for side in zip(*sizes, strict=True)] for f in (min, max))
    yield (
        f"The images have {len(sizes)} sizes, from {low[0]} to {high[0]} pixels high and from "
        f"{low[1]} to {high[1]} wide, and are kept as they are: train with data.image_size=N, "
        "or pack them again with --image-size N."
    )


Array = np.typing.NDArray[Any]
MAGIC = b"\x93NUMPY"  # first bytes of a .npy file


def npy_source(file: Path, options: PackOptions) -> PackSource:
    """Return the rows of an array, which is memory-mapped.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 are images, written as PNG.
    Other arrays, such as [N, D], are written as float32 in the field `npy`. A row's number is the
    key of its sample.
    """
    rows = _load(file)
    if rows.ndim < 2 or rows.ndim > 4 or rows.dtype.kind not in "uif" or not len(rows):
        raise DataError(
            f"{file}: an array of numbers with 2 to 4 dimensions is wanted, rows first "
            f"(got {rows.dtype} {rows.shape})."
        )
    labels = _labels(options, len(rows))
    images = rows.dtype == np.uint8 and rows.ndim > 2

    def sample(number: int) -> Fields:
        label = labels.numbers[number]
        if images:
            return image_fields(number, _image(rows[number], file), label, options)
        return _array_fields(number, rows[number], label, f"{file}, row {number}")

    parts = split([str(n) for n in range(len(rows))], options)
    sets = {
        name: SampleSet(len(part), map(sample, part), [labels.numbers[n] for n in part])
        for name, part in parts.items()
    }
    missing = labels.num_missing
    notes = [f"warning: {missing_labels(missing, len(rows))}"] if missing else []
    return PackSource(sets, labels.classes, lambda: notes)


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


def _labels(options: PackOptions, num_rows: int) -> names.Labels:
    file, known = options.labels, options.known_classes
    if file is None:
        return names.Labels([None] * num_rows)
    labels = _load(file)
    # Floats are integers with a gap, as pandas keeps them: NaN is no label.
    is_missing = np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(labels.shape, bool)
    is_whole = labels.dtype.kind in "ui" or (
        labels.dtype.kind == "f" and bool((labels % 1 == 0)[~is_missing].all())
    )
    if labels.shape != (num_rows,) or not is_whole:
        raise DataError(
            f"{file}: {num_rows} whole numbers are wanted, one for each row "
            f"(got {labels.dtype} {labels.shape})."
        )
    numbers = [None if n in (None, -1) else n for n in _integers(labels, is_missing)]
    if known is not None:
        names.refuse_unknown(
            {str(n) for n in numbers} - {"None", *map(str, known.values())}, known, str(file)
        )
    return names.Labels(numbers, known or {})


def _integers(labels: Array, is_missing: np.typing.NDArray[np.bool_]) -> Iterator[int | None]:
    for label, missing in zip(labels.tolist(), is_missing.tolist(), strict=True):
        yield None if missing else int(label)


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


def _array_fields(number: int, row: Array, label: int | None, name: str) -> Fields:
    numbers = np.asarray(row, "<f4")
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: has numbers that are not finite; remove them.")
    fields: Fields = {"__key__": f"{number:08d}", "npy": arrays.npy_bytes(numbers)}
    return fields if label is None else {**fields, LABEL_FIELD: str(label).encode()}
