"""Known data sets from the files that torchvision keeps, downloaded where they are absent."""

import io
import json
import pickletools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from aae_dist.data.pack import sources
from aae_dist.data.pack.sources import Fields, PackOptions, PackSource, Pixels, SampleSet
from aae_dist.errors import ConfigError, DataError

MNIST_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_MNIST_SETS = {"train": "train", "validation": "t10k"}
CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_SETS = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "validation": ("test_batch",),
}
CIFAR_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SVHN_SETS = {"train": "train", "validation": "test"}
CELEBA_FOLDER, CELEBA_IMAGES = "celeba", "img_align_celeba"
CELEBA_SETS = {"0": "train", "1": "validation", "2": "test"}
"""By the number in list_eval_partition.txt."""
CIFAR_SHAPE = (3, 32, 32)
_TEXT = (
    *("SHORT_BINSTRING", "BINSTRING", "BINUNICODE"),
    *("SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
)
_INTEGER = ("BININT1", "BININT2", "BININT", "INT")


def mnist_source(name: str, root: Path, options: PackOptions) -> PackSource:
    """Return both sets of mnist or fashion-mnist."""
    raw = root / MNIST_FOLDERS[name] / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").exists():
        kind = MNIST_FOLDERS[name]
        download(name, root, lambda sets: getattr(sets, kind)(str(root), download=True))
    sets = {}
    for set_name, prefix in _MNIST_SETS.items():
        images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1)
        sets[set_name] = _image_set(images, labels, raw, options)
    return PackSource(sets)


def cifar10_source(root: Path, options: PackOptions) -> PackSource:
    """Return the 50,000 training images, and the 10,000 of the test set as validation."""
    folder = root / CIFAR_FOLDER
    if not (folder / "test_batch").exists():
        download("cifar10", root, partial(_download_cifar10, root))
    sets = {}
    for set_name, files in _CIFAR_SETS.items():
        batches = [read_cifar_batch(folder / file) for file in files]
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        sets[set_name] = _image_set(images.transpose(0, 2, 3, 1), labels, folder, options)
    return PackSource(sets, {name: label for label, name in enumerate(CIFAR_CLASSES)})


def svhn_source(root: Path, options: PackOptions) -> PackSource:
    """Return the 73,257 training digits, and the 26,032 of the test set as validation."""
    if find_spec("scipy") is None:
        raise ConfigError("pack svhn reads MATLAB files with SciPy: pip install 'aae_dist[pack]'")
    sets = {}
    for set_name, split in _SVHN_SETS.items():
        file = root / f"{split}_32x32.mat"
        if not file.exists():
            download("svhn", root, partial(_download_svhn, root, split))
        arrays = _read_mat(file)
        images, numbers = arrays.get("X", np.empty(0)), arrays.get("y", np.empty(0))
        if images.ndim != 4 or images.dtype != np.uint8 or numbers.dtype.kind not in "uif":
            raise DataError(f"{file}: has no arrays X and y of digits; delete it.")
        labels = numbers.reshape(-1).astype(np.int64) % 10  # SVHN calls the zero 10
        sets[set_name] = _image_set(images.transpose(3, 0, 1, 2), labels, file, options)
    return PackSource(sets)


def _read_mat(file: Path) -> dict[str, Any]:
    """Return the arrays X and y, as far as the file has them, of MATLAB 5 (7.3 is HDF5)."""
    from scipy.io import loadmat

    data = sources.read_file(file)
    if data[124:128] != b"\x00\x01IM":
        raise DataError(f"{file}: not a MATLAB 5 file of little-endian numbers; delete it.")
    try:
        arrays: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=("X", "y"))
    except Exception as error:  # noqa: BLE001 - SciPy's parser raises what the bytes make it
        reason = " ".join(str(error).split())
        message = f"{file}: damaged ({reason:.300}); delete it to download it again."
        raise DataError(message) from None
    return arrays


def download(name: str, root: Path, run: Callable[[Any], object]) -> None:
    """Let torchvision download a data set; DataError says what to do when it cannot."""
    # Imported here: it takes seconds, and is not needed for files that are there.
    import torchvision.datasets

    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    before = set(root.glob("*"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        run(torchvision.datasets)
    except (RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        _remove_empty(root, before, made)
        raise DataError(
            f"{root}: {name} is not in this folder and cannot be downloaded ({reason:.300}). "
            "Give --root FOLDER with the original files, or check the network."
        ) from error


def _remove_empty(root: Path, before: Collection[Path], made: Sequence[Path]) -> None:
    """Remove folders that a download made and left empty; files that it left stay.

    `before` it these lay in `root`; `made` are `root` and folders above it, nearest first, that
    were not there.
    """
    new = [path for path in root.glob("*") if path not in before and path.is_dir()]
    inner = [path for top in new for path in top.rglob("*") if path.is_dir()]
    for folder in [*sorted(inner, reverse=True), *new, *made]:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _download_cifar10(root: Path, datasets: Any) -> None:
    # Not by the class itself, which would unpickle the files.
    from torchvision.datasets.utils import download_and_extract_archive

    known = datasets.CIFAR10
    download_and_extract_archive(known.url, str(root), filename=known.filename, md5=known.tgz_md5)


def _download_svhn(root: Path, split: str, datasets: Any) -> None:
    # Not by the class itself, which needs SciPy to read the file.
    from torchvision.datasets.utils import download_url

    url, file, md5 = datasets.SVHN.split_list[split]
    download_url(url, str(root), file, md5)


def _image_set(
    images: Pixels, labels: np.typing.NDArray[np.integer], where: Path, options: PackOptions
) -> SampleSet:
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; delete it.")

    def samples() -> Iterator[Fields]:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield sources.image_fields(number, np.ascontiguousarray(image), label, options)

    return SampleSet(len(images), samples(), labels.tolist())


def _read_idx(path: Path, num_dimensions: int) -> np.typing.NDArray[np.uint8]:
    """Read LeCun's IDX format: two zeros, type 8 (uint8), the rank, each length (big-endian)."""
    data = sources.read_file(path)
    start = 4 + 4 * num_dimensions
    shape = [int(n) for n in np.frombuffer(data[4:start].ljust(start - 4, b"\0"), ">u4")]
    if data[:4] != bytes((0, 0, 8, num_dimensions)) or len(data) - start != np.prod(shape):
        raise DataError(f"{path}: damaged or not an IDX file; delete it to download it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def celeba_source(root: Path, options: PackOptions) -> PackSource:
    """Return the train, validation and test faces; their labels are the entries of a json field.

    That field holds each of the 40 attributes as 0 or 1, and `identity`, a number, so that
    `data.label_key=json:Smiling` makes an attribute the label.
    """
    folder = root / CELEBA_FOLDER
    if not (folder / "list_eval_partition.txt").exists() or not (folder / CELEBA_IMAGES).is_dir():
        download("celeba", root, lambda sets: sets.CelebA(str(root), "all", download=True))
    partition = dict(_columns(folder / "list_eval_partition.txt", 2))
    identity = dict(_columns(folder / "identity_CelebA.txt", 2))
    names, attributes = _attributes(folder / "list_attr_celeba.txt")
    if not partition.keys() == identity.keys() == attributes.keys():
        raise DataError(f"{folder}: its lists do not name the same images; delete them.")
    sets = {}
    for number, set_name in CELEBA_SETS.items():
        files = sorted(file for file, set_number in partition.items() if set_number == number)
        labels = [
            {"identity": int(identity[f]), **dict(zip(names, attributes[f], strict=True))}
            for f in files
        ]
        if files:
            sets[set_name] = SampleSet(
                len(files), _samples(folder / CELEBA_IMAGES, files, labels, options)
            )
    return PackSource(sets)


def _samples(
    folder: Path, files: Sequence[str], labels: Sequence[dict[str, int]], options: PackOptions
) -> Iterator[Fields]:
    for file, label in zip(files, labels, strict=True):
        path = folder / file
        fields, _ = sources.file_fields(path.stem, sources.read_file(path), str(path), options)
        yield {**fields, "json": json.dumps(label).encode()}


def _attributes(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """Return the attributes' names, and their values (0 or 1) for each image."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    values = {}
    for line in lines[2:]:
        file, *numbers = line.split()
        if len(numbers) != len(names) or not set(numbers) <= {"1", "-1"}:
            raise DataError(f"{path}: the line of {file!r:.80} does not fit the names; delete it.")
        values[file] = [int(number == "1") for number in numbers]
    return names, values


def _columns(path: Path, num_columns: int) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        file, *rest = line.split()
        if len(rest) != num_columns - 1 or not rest[0].isdigit():
            raise DataError(f"{path}: {line!r:.80} is not an image and a number; delete it.")
        yield file, rest[0]


def _lines(path: Path) -> list[str]:
    text = sources.read_file(path).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()]


KNOWN: Mapping[str, Callable[[Path, PackOptions], PackSource]] = {
    "mnist": partial(mnist_source, "mnist"),
    "fashion-mnist": partial(mnist_source, "fashion-mnist"),
    "cifar10": cifar10_source,
    "svhn": svhn_source,
    "celeba": celeba_source,
}


def read_cifar_batch(path: Path) -> tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.int64]]:
    """Return images, uint8 [N, 3, 32, 32], and labels, int64 [N], of one batch, never unpickled."""
    pixels, labels = b"", []
    section = ""
    for name, argument in _instructions(sources.read_file(path), path):
        if name in _TEXT:
            data = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
            if data in (b"labels", b"data", b"filenames", b"batch_label"):
                section = data.decode()
            elif section == "data" and len(data) > len(pixels):
                pixels = data  # the longest text: the others are names of types
        elif section == "labels" and name in _INTEGER:
            labels.append(int(argument))
    size = int(np.prod(CIFAR_SHAPE))
    if not labels or len(pixels) != len(labels) * size or not 0 <= min(labels) <= max(labels) < 10:
        raise DataError(
            f"{path}: no batch of CIFAR-10 ({len(pixels)} bytes of pixels, {len(labels)} labels); "
            "delete it to download it again."
        )
    images = np.frombuffer(pixels, np.uint8).reshape(-1, *CIFAR_SHAPE)
    return images, np.array(labels, np.int64)


def _instructions(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        for code, argument, _ in pickletools.genops(data):
            yield code.name, argument
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); delete it to download it again.") from None
