"""CIFAR-10's batches, which are pickles: their bytes are looked at, never unpickled.

A pickle is a program for a small machine. `pickletools` lists its instructions without running
any; the pixels are the argument of one of them, the labels those of others.
"""

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.pack_sources import read_file
from aae_dist.errors import DataError

SHAPE = (3, 32, 32)
_TEXT = (
    "SHORT_BINSTRING",
    "BINSTRING",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "SHORT_BINBYTES",
    "BINBYTES",
)
_INTEGER = ("BININT1", "BININT2", "BININT", "INT")


def read_cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images, uint8 [N, 3, 32, 32], and labels, int64 [N], of one batch.

    Raises:
        DataError: The file is absent, or no batch.
    """
    pixels, labels = b"", []
    section = ""
    for name, argument in _instructions(read_file(path), path):
        if name in _TEXT:
            data = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
            if data in (b"labels", b"data", b"filenames", b"batch_label"):
                section = data.decode()
            elif section == "data" and len(data) > len(pixels):
                pixels = data  # the longest text: the others are names of types
        elif section == "labels" and name in _INTEGER:
            labels.append(int(argument))
    size = int(np.prod(SHAPE))
    if not labels or len(pixels) != len(labels) * size or not 0 <= min(labels) <= max(labels) < 10:
        raise DataError(
            f"{path}: no batch of CIFAR-10 ({len(pixels)} bytes of pixels, {len(labels)} labels); "
            "delete it to download it again."
        )
    images = np.frombuffer(pixels, np.uint8).reshape(-1, *SHAPE)
    return images, np.array(labels, np.int64)


def _instructions(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        for code, argument, _ in pickletools.genops(data):
            yield code.name, argument
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); delete it to download it again.") from None
