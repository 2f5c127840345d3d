"""PNG files are validated before torchvision decodes them.

torchvision 0.29 does not survive libpng's errors: one flipped bit in an image ends the process with
a segmentation fault. A file that passes leaves libpng nothing to complain about.
"""

import struct
import zlib

from aae_dist.errors import SampleError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""By colour type: grey, colour, each also with alpha. Palettes are left to Pillow."""
_MAX_SIDE = 1_000_000
"""libpng refuses longer sides."""
_KINDS = frozenset((b"IHDR", b"IDAT", b"PLTE"))
_ANCILLARY = 0x20
"""Bit of a chunk's first letter: a decoder may ignore it."""
_OVERHEAD = 12
"""Bytes of a chunk next to its data: length, kind, checksum."""


def validate_png(data: bytes) -> bytearray | None:
    """Return the file reduced to header and pixels, or None when its kind is unusual.

    Costs some 10 us for 28 x 28 pixels.

    Raises:
        SampleError: The file is damaged: cut off, a wrong checksum, too few or too many pixels.
    """
    try:
        chunks = _chunks(data)
        header = chunks[0]
        width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", header, 8)
        is_known = colour in _CHANNELS and depth in (8, 16) and not any(methods)
        kinds = {chunk[4:8] for chunk in chunks if not chunk[4] & _ANCILLARY}
        if not is_known or kinds - _KINDS or any(chunk[4:8] == b"tRNS" for chunk in chunks):
            return None
        if len(header) != 13 + _OVERHEAD or not 0 < max(width, height) <= _MAX_SIDE:
            return None
        pixels = b"".join(chunk[8:-4] for chunk in chunks if chunk[4:8] == b"IDAT")
        _check_pixels(pixels, height, 1 + width * _CHANNELS[colour] * depth // 8)
    except (struct.error, zlib.error, IndexError) as error:
        raise _damaged(str(error)) from None
    return bytearray(_SIGNATURE + header + _chunk(b"IDAT", pixels) + _END)


def _chunks(data: bytes) -> list[bytes]:
    """Return all chunks before the end, whole; the first is the header."""
    found: list[bytes] = []
    position = len(_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + length + _OVERHEAD]
        if len(chunk) != length + _OVERHEAD:
            raise _damaged(f"cut off at byte {len(data)}")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise _damaged(f"wrong checksum of the chunk at byte {position}")
        if kind == b"IEND":
            return found
        found.append(chunk)
        position += len(chunk)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


_END = _chunk(b"IEND", b"")


def _check_pixels(pixels: bytes, height: int, row: int) -> None:
    """Raise unless `pixels` inflate to `height` rows of `row` bytes with known filters."""
    inflate = zlib.decompressobj()
    # One byte more than the image has tells a whole one from a bomb.
    rows = inflate.decompress(pixels, height * row + 1)
    if len(rows) != height * row or not inflate.eof or inflate.unused_data:
        raise _damaged(f"the pixels are not the {height * row} bytes that the header promises")
    if max(rows[::row]) > 4:  # the first byte of a row names one of five filters
        raise _damaged("a row has an unknown filter")


def _damaged(detail: str) -> SampleError:
    return SampleError(f"the PNG image is damaged ({detail})", reason="image")
