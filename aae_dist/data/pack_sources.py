"""What can be packed: MNIST and its like from their original files, and folders of images."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aae_dist.errors import DataError

Fields = dict[str, str | bytes]
"""A sample as WebDataset writes it: {"__key__": ..., "png": ..., "cls": ...}."""

_FIELDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_MNIST_SETS = {"train": "train", "validation": "t10k"}


@dataclass(frozen=True)
class SampleSet:
    """Samples to write, to be gone through once."""

    num_samples: int
    samples: Iterator[Fields]


def mnist_sets(name: str, root: Path) -> dict[str, SampleSet]:
    """Return both sets of mnist or fashion-mnist from the files that torchvision keeps in `root`.

    Raises:
        DataError: The files are not there and cannot be downloaded, or are damaged.
    """
    raw = root / _TORCHVISION[name] / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").exists():
        _download(name, root)
    sets = {}
    for set_name, prefix in _MNIST_SETS.items():
        images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(f"{raw}: {len(images)} images but {len(labels)} labels; delete it.")
        sets[set_name] = SampleSet(len(images), _mnist_samples(images, labels))
    return sets


def _download(name: str, root: Path) -> None:
    # Imported here: it takes seconds, and is not needed for files that are there.
    import torchvision.datasets

    try:
        getattr(torchvision.datasets, _TORCHVISION[name])(str(root), download=True)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{root}: {name} is not in this folder and cannot be downloaded ({reason:.300}). "
            "Give --root FOLDER with the original files, or check the network."
        ) from error


def _read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """Read LeCun's IDX format: two zeros, type 8 (uint8), the rank, each length (big-endian)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}).") from None
    start = 4 + 4 * num_dimensions
    shape = [int(n) for n in np.frombuffer(data[4:start].ljust(start - 4, b"\0"), ">u4")]
    if data[:4] != bytes((0, 0, 8, num_dimensions)) or len(data) - start != np.prod(shape):
        raise DataError(f"{path}: damaged or not an IDX file; delete it to download it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _mnist_samples(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Iterator[Fields]:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        yield _fields(number, "png", _png(Image.fromarray(image)), label)


def folder_sets(
    root: Path, image_size: int | None, validation_fraction: float
) -> dict[str, SampleSet]:
    """Return the images below `root`, labelled by the sorted names of its sub-folders.

    The hash of an image's path decides its set and its place, so that classes are mixed and adding
    images moves none of the others to the other set.

    Raises:
        DataError: There are no sub-folders or no images in them.
    """
    if not 0 <= validation_fraction < 1:
        raise DataError(f"The validation fraction must be in [0, 1) (got {validation_fraction}).")
    files = sorted(_labelled_files(root), key=lambda pair: _hash(root, pair[0]))
    limit = int(validation_fraction * 2**64).to_bytes(9, "big")[1:]
    validation = [pair for pair in files if _hash(root, pair[0]) < limit]
    chosen = {"train": files[len(validation) :], "validation": validation}
    if not chosen["train"]:
        raise DataError(f"{root}: no image is left for training; give more images.")
    return {
        name: SampleSet(len(pairs), _folder_samples(pairs, image_size))
        for name, pairs in chosen.items()
        if pairs
    }


def _labelled_files(root: Path) -> list[tuple[Path, int]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder with a sub-folder for each class.")
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    found = [
        (path, label)
        for label, folder in enumerate(classes)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]
    if not found:
        raise DataError(
            f"{root}: no {', '.join(_SUFFIXES)} file in {len(classes)} sub-folders; "
            "give a folder with a sub-folder for each class."
        )
    return found


def _hash(root: Path, path: Path) -> bytes:
    name = path.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
    return blake2b(name, digest_size=8).digest()


def _folder_samples(pairs: Sequence[tuple[Path, int]], image_size: int | None) -> Iterator[Fields]:
    first: tuple[int, int] | None = None
    for number, (path, label) in enumerate(pairs):
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data), formats=tuple(_FIELDS)) as image:
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not a readable image ({error}); remove it.") from None
        if image_size is not None:
            yield _fields(number, "png", _png(_resized(image, image_size)), label)
            continue
        first = first or image.size
        if image.size != first:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels where others have "
                f"{first[0]} x {first[1]}; give --image-size to bring all to one size."
            )
        yield _fields(number, _FIELDS[str(image.format)], data, label)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square of the image, scaled to `size` pixels a side."""
    plain = image.convert("L" if image.mode in ("1", "L", "LA", "I;16") else "RGB")
    return ImageOps.fit(plain, (size, size), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _fields(number: int, field: str, image: bytes, label: int) -> Fields:
    return {"__key__": f"{number:08d}", field: image, "cls": str(label).encode()}
