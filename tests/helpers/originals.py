"""Small data sets in the formats of CIFAR-10, SVHN and CelebA, written byte for byte."""

import struct
import zlib
from pathlib import Path

import numpy as np
from helpers.shards import encoded
from numpy.typing import NDArray


def cifar_batch(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Return a batch as Python 2's cPickle, protocol 2, wrote those of CIFAR-10.

    {'batch_label': str, 'labels': [int], 'data': uint8 array [N, 3072], 'filenames': [str]}
    """
    num, size = len(images), int(np.prod(images.shape[1:]))
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    data = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09U\x01b"
        + b"\x87q\x0aRq\x0b(K\x01J" + struct.pack("<i", num) + b"M" + struct.pack("<H", size)
        + b"\x86q\x0ccnumpy\ndtype\nq\x0dU\x02u1K\x00K\x01\x87Rq\x0e(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5")
        + text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
        + text(b"data") + b"q\x06" + array
        + text(b"filenames") + b"](" + b"".join(text(b"a_s_%d.png" % n) for n in range(num)) + b"e"
        + b"u."
    )  # fmt: skip


def write_cifar(root: Path, per_batch: int = 4) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """Write cifar-10-batches-py below `root`; return images and labels by file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written = {}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        numbers = np.random.default_rng(number)
        images = numbers.integers(0, 256, (per_batch, 3, 32, 32), np.uint8)
        labels = numbers.integers(0, 10, per_batch).tolist()
        (folder / name).write_bytes(cifar_batch(images, labels))
        written[name] = (images, labels)
    return written


def _element(kind: int, data: bytes) -> bytes:
    if len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_matrix(name: str, values: NDArray[np.uint8], array_class: int) -> bytes:
    """Return a matrix element with values stored as uint8, Fortran order."""
    inner = _element(6, bytes([array_class, 0, 0, 0, 0, 0, 0, 0]))
    inner += _element(5, np.array(values.shape, "<i4").tobytes())
    inner += _element(1, name.encode()) + _element(2, values.tobytes(order="F"))
    return struct.pack("<II", 14, len(inner)) + inner


def mat_file(*elements: bytes, compressed: bool = True) -> bytes:
    """Return a MATLAB 5 file, as MATLAB writes it: each variable compressed by itself."""
    header = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x01IM"
    packed = [zlib.compress(e) for e in elements] if compressed else []
    return header + b"".join(
        [struct.pack("<II", 15, len(e)) + e for e in packed] if compressed else elements
    )


def write_svhn(root: Path, compressed: bool = True) -> dict[str, NDArray[np.uint8]]:
    """Write train_32x32.mat and test_32x32.mat; return the images [32, 32, 3, N] by split."""
    root.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, num in (("train", 7), ("test", 3)):
        images = np.random.default_rng(num).integers(0, 256, (32, 32, 3, num), np.uint8)
        labels = np.arange(1, num + 1, dtype=np.uint8)[:, None] + 3  # 4 .. 10, and 10 is zero
        elements = [mat_matrix("X", images, 9), mat_matrix("y", labels, 6)]
        (root / f"{split}_32x32.mat").write_bytes(mat_file(*elements, compressed=compressed))
        written[split] = images
    return written


def write_celeba(root: Path, sizes: tuple[int, int] = (178, 218)) -> None:
    """Write six faces of two people below `root`/celeba: three to train, one, and two to test."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{n:06d}.jpg" for n in range(1, 7)]
    for number, name in enumerate(names):
        image = np.full((sizes[1], sizes[0], 3), 40 * number, np.uint8)
        (folder / "img_align_celeba" / name).write_bytes(encoded(image, "JPEG", quality=95))
    partition = zip(names, "000122", strict=True)
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {s}\n" for n, s in partition))
    identity = zip(names, (5, 9, 5, 5, 9, 9), strict=True)
    (folder / "identity_CelebA.txt").write_text("".join(f"{n} {i}\n" for n, i in identity))
    values = [f"{n} {1 if i % 2 else -1}  {-1 if i < 3 else 1}\n" for i, n in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("6\nMale Smiling\n" + "".join(values))
