"""Numeric arrays of a MATLAB 5 file, the format of SVHN, bounds checked.

The format: "MAT-File Format", The MathWorks, chapter 1. A file is a header of 128 bytes and
elements; each has a tag (type, number of bytes) and its data, padded to 8 bytes.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.pack.sources import read_file
from aae_dist.errors import DataError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_MAX_BYTES = 4 << 30
_TYPES = {
    1: "i1",
    2: "u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
"""Types of stored numbers."""
_CLASSES = {6: "<f8", 7: "<f4", 8: "i1", 9: "u1", 10: "<i2", 11: "<u2", 12: "<i4", 13: "<u4"}
"""Types of arrays; their numbers may be stored in a smaller type."""

Element = tuple[int, bytes]


def read_mat_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the numeric arrays of the file by name; other variables are passed over.

    Raises:
        DataError: The file is absent, damaged, or of another version (7.3 is HDF5).
    """
    data = read_file(path)
    if len(data) < _HEADER or data[124:128] != b"\x00\x01IM":
        raise DataError(f"{path}: not a MATLAB 5 file of little-endian numbers; delete it.")
    try:
        matrices = [inner for kind, inner in _elements(data[_HEADER:]) if kind == _MATRIX]
        return dict(found for inner in matrices if (found := _array(inner)))
    except (struct.error, ValueError, KeyError, IndexError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); delete it to download it again.") from None


def _elements(data: bytes) -> Iterator[Element]:
    """Yield (type, data) of each element; compressed ones are unpacked."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, position)
        if kind >> 16:  # a small element: both numbers in four bytes, the data in the next four
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError("a small element of more than 4 bytes")
            yield kind, data[position + 4 : position + 4 + size]
            position += 8
            continue
        start, end = position + 8, position + 8 + size
        if end > len(data):
            raise ValueError("an element reaches beyond the end")
        if kind == _COMPRESSED:
            yield from _elements(_unpacked(data[start:end]))
            position = end
        else:
            yield kind, data[start:end]
            position = end + -size % 8


def _unpacked(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    inner = stream.decompress(data, _MAX_BYTES)
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError("a compressed element is cut off or too large")
    return inner


def _array(data: bytes) -> tuple[str, NDArray[Any]] | None:
    """Return name and values of a matrix element; None if it is not numeric."""
    elements = list(_elements(data))
    (_, flags), (_, dimensions), (_, name) = elements[:3]
    kind = _CLASSES.get(flags[0])
    if kind is None or len(elements) < 4:
        return None
    stored, numbers = elements[3]
    shape = tuple(int(n) for n in np.frombuffer(dimensions, "<i4"))
    values = np.frombuffer(numbers, _TYPES[stored]).astype(kind, copy=False)
    return name.decode("ascii"), values.reshape(shape, order="F")
