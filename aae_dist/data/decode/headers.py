"""Size, channels and EXIF orientation of PNG, JPEG and WebP images, read before any decoding."""

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Format = Literal["PNG", "JPEG", "WEBP"]

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
"""By PNG colour type: grey, colour, palette, grey with alpha, colour with alpha."""
_JPEG_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)))
_JPEG_APP1 = 0xE1
_JPEG_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers that must not precede the frame: a decoder could see another frame behind them."""
_WEBP_HAS_EXIF = 0x08
PREFIX = b"Exif\0\0"
"""Start of EXIF data, always in JPEG, and in WebP of some writers."""
_ORIENTATION, _SHORT = 274, 3
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""By orientation: axes of [C, H, W] to mirror, after rows and columns are exchanged (from 5 on)."""


class ImageHeader(NamedTuple):
    """Header of an image file; height and width are those of the upright image."""

    format: Format
    channels: int
    """1 for grey, 3 for colour; alpha not counted."""
    height: int
    width: int
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    is_cmyk: bool = False
    """Whether a JPEG has four components, as for printing."""


def read_header(data: bytes) -> ImageHeader | None:
    """Return the image's header; None if it is none of the three formats."""
    header = _stored(data)
    if header is None or not swaps_axes(header.orientation):
        return header
    return header._replace(height=header.width, width=header.height)


def _stored(data: bytes) -> ImageHeader | None:
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png_header(data)
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg_header(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_header(data)
    except (struct.error, IndexError, KeyError):
        pass
    return None


def _png_header(data: bytes) -> ImageHeader | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    # Few PNG files have EXIF data: the chunks are parsed only if its name occurs.
    exif = next(_chunks(data, 8, b"eXIf", ">I"), b"") if b"eXIf" in data else b""
    return ImageHeader("PNG", _PNG_CHANNELS[data[25]], height, width, orientation(exif))


def _jpeg_header(data: bytes) -> ImageHeader | None:
    position, turn = 2, 1
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _JPEG_WITHOUT_LENGTH:
            return None
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            channels = 1 if components == 1 else 3
            return ImageHeader("JPEG", channels, height, width, turn, components == 4)
        if marker == _JPEG_APP1 and turn == 1 and data.startswith(PREFIX, position + 4):
            turn = orientation(data[position + 4 : position + 2 + length])
        position += 2 + length
    return None


def _webp_header(data: bytes) -> ImageHeader | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WEBP", 3, height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return ImageHeader("WEBP", 3, (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        exif = next(_chunks(data, 12, b"EXIF", "<I"), b"") if data[20] & _WEBP_HAS_EXIF else b""
        return ImageHeader("WEBP", 3, height, width, orientation(exif))
    return None


def _chunks(data: bytes, position: int, kind: bytes, length: str) -> Iterator[bytes]:
    """Yield the contents of the chunks of one kind, of a PNG (length first) or a WebP file."""
    first = length == ">I"
    while position + 8 <= len(data):
        (size,) = struct.unpack_from(length, data, position if first else position + 4)
        if data[position + 4 * first : position + 4 * first + 4] == kind:
            yield data[position + 8 : position + 8 + size]
        # A PNG's checksum follows; WebP pads to even places.
        position += 8 + size + (4 if first else size % 2)


def orientation(data: bytes) -> int:
    """Return the orientation of EXIF data, 1 to 8; 1 (upright) where there is none.

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


def swaps_axes(orientation: int) -> bool:
    """Return whether an orientation exchanges rows and columns."""
    return orientation >= 5


def apply_orientation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the stored image [C, H, W] upright, [C, H, W] or [C, W, H]."""
    if orientation == 1:
        return image
    turned = image.transpose(0, 2, 1) if swaps_axes(orientation) else image
    return np.flip(turned, _FLIPS.get(orientation, ()))
