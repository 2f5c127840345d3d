"""NumPy arrays of samples: uint8 or float32 of one to three dimensions, never pickled objects."""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from aae_dist.errors import SampleError

Shape = tuple[int, int, int]
"""Channels, height, width."""

_DTYPES = ("|u1", "<f4")
_MAX_HEADER_BYTES = 10_000


def decode_array(data: bytes) -> NDArray[Any]:
    """Return the array in a .npy file as uint8 or float32 [C, H, W], a view of `data`.

    [D] becomes [1, 1, D], and [H, W] becomes [1, H, W].

    Raises:
        SampleError: The bytes are no such array, or some of its numbers are not finite.
    """
    shape, fortran_order, dtype, start = _header(data)
    if dtype.str not in _DTYPES:
        raise _error(f"the array is of type {dtype.str!r:.80}; uint8 and float32 are read")
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise _error(f"the array has shape {shape!r:.80}; 1 to 3 dimensions are read, none empty")
    # Checked before anything is allocated: a header may claim terabytes.
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(data) - start:
        raise _error(f"the array needs {wanted} bytes and has {len(data) - start}")
    array: NDArray[Any] = np.frombuffer(data, dtype, offset=start)
    array = array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _error("the array has numbers that are not finite")
    return array.reshape((1,) * (3 - len(shape)) + shape)


def is_array(name: str) -> bool:
    """Return whether the field of this name holds a NumPy array."""
    return name.rpartition(".")[2] == "npy"


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and the byte at which the numbers begin."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # noqa: BLE001 - numpy parses Python literals: any error may come
        raise _error(f"not a .npy array ({str(error)!r:.80})") from None
    if version not in ((1, 0), (2, 0)):
        raise _error(f"a .npy array of version {version}; 1.0 and 2.0 are read")
    return shape, fortran_order, dtype, stream.tell()


def _error(message: str) -> SampleError:
    return SampleError(message, reason="array")
