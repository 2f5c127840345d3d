"""Size and channels of PNG, JPEG and WebP images, read from their headers before any decoding."""

import struct
from typing import Literal, NamedTuple

Format = Literal["PNG", "JPEG", "WEBP"]

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
"""By PNG colour type: grey, colour, palette, grey with alpha, colour with alpha."""
_JPEG_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)))


class ImageHeader(NamedTuple):
    """What an image file says of itself."""

    format: Format
    channels: int
    """1 for grey, 3 for colour; alpha not counted."""
    height: int
    width: int


def read_header(data: bytes) -> ImageHeader | None:
    """Return what the image's first bytes say; None if it is none of the three formats."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data)
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError, KeyError):
        pass
    return None


def _png(data: bytes) -> ImageHeader | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader("PNG", _PNG_CHANNELS[data[25]], height, width)


def _jpeg(data: bytes) -> ImageHeader | None:
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return ImageHeader("JPEG", 1 if components == 1 else 3, height, width)
        position += 2 + length
    return None


def _webp(data: bytes) -> ImageHeader | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WEBP", 3, height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return ImageHeader("WEBP", 3, (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return ImageHeader("WEBP", 3, int.from_bytes(data[27:30], "little") + 1, width)
    return None
