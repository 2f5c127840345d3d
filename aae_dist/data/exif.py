"""The EXIF orientation of photographs: how a camera was held, and the image the right way up."""

import struct

import numpy as np
from numpy.typing import NDArray

PREFIX = b"Exif\0\0"
"""Begins EXIF data in JPEG always, and in WebP with some writers."""
_ORIENTATION, _SHORT = 274, 3
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""By orientation: axes of [C, H, W] to mirror, after rows and columns are exchanged (from 5 on)."""


def orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF data name; 1, upright, where they name none.

    Args:
        data: a TIFF header and its directories, with or without `PREFIX`.
    """
    tiff = data.removeprefix(PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value) if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def is_turned(orientation: int) -> bool:
    """Return whether rows and columns are exchanged."""
    return orientation >= 5


def upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the stored image [C, H, W] as it is to be seen, [C, H, W] or [C, W, H]."""
    if orientation == 1:
        return image
    turned = image.transpose(0, 2, 1) if is_turned(orientation) else image
    return np.flip(turned, _FLIPS.get(orientation, ()))
