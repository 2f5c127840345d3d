"""PNG files are validated before torchvision decodes them, small ones in stacks.

torchvision 0.29 does not survive libpng's errors: one flipped bit in an image ends the process with
a segmentation fault. A file that passes leaves libpng nothing to complain about.

A call of torchvision costs 16 us per digit, and 2 us per further digit of a stack: a third of the
first pass over MNIST. Validation has inflated the rows of an image, so those of many images are
placed below one another and stored without compression. Filters look at the row above and at
nothing else, and above an image's first row they see zeros (PNG specification, section 9.2): a row
of zeros lies between two images.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from aae_dist.errors import SampleError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""By colour type: grey, colour, each also with alpha. Palettes are left to Pillow."""
MAX_SIDE = 1_000_000
"""libpng refuses longer sides."""
_KINDS = frozenset((b"IHDR", b"IDAT", b"PLTE"))
_ANCILLARY = 0x20
"""Bit of a chunk's first letter: a decoder may ignore it."""
_OVERHEAD = 12
"""Bytes of a chunk next to its data: length, kind, checksum."""
_MAX_STACKED_BYTES = 1 << 18
"""Inflated rows of an image that are kept to be stacked; libpng inflates larger images again."""


class PngKind(NamedTuple):
    """Properties that the images of one stack have in common."""

    width: int
    depth: int
    """Bits per channel: 8 or 16."""
    colour: int
    """PNG's number of the colour type; a key of `_CHANNELS`."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of pixels: its filter's number and the pixels."""
        return 1 + self.width * _CHANNELS[self.colour] * self.depth // 8


class ValidPng(NamedTuple):
    """An image that libpng decodes without an error."""

    kind: PngKind
    height: int
    pixels: bytes
    """Compressed, as in the file."""
    rows: bytes | None
    """Those of a small image inflated but still filtered: `height` rows of `kind.row_bytes`."""


def validate_png(data: bytes) -> ValidPng | None:
    """Return the image, or None when its kind is unusual.

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
        if len(header) != 13 + _OVERHEAD or not 0 < max(width, height) <= MAX_SIDE:
            return None
        kind = PngKind(width, depth, colour)
        pixels = b"".join(chunk[8:-4] for chunk in chunks if chunk[4:8] == b"IDAT")
        rows = _inflated(pixels, height, kind.row_bytes)
    except (struct.error, zlib.error, IndexError) as error:
        raise _damaged(str(error)) from None
    return ValidPng(kind, height, pixels, rows if len(rows) <= _MAX_STACKED_BYTES else None)


def stacks(images: Mapping[int, ValidPng]) -> Iterator[list[int]]:
    """Yield the numbers of images that `stacked` takes together, each number once."""
    open_stacks: dict[PngKind, tuple[list[int], int]] = {}
    for number, image in images.items():
        if image.rows is None:
            yield [number]
            continue
        stack, height = open_stacks.get(image.kind, ([], 0))
        if height + image.height > MAX_SIDE:
            yield stack
            stack, height = [], 0
        stack.append(number)
        open_stacks[image.kind] = stack, height + image.height + 1
    yield from (stack for stack, _ in open_stacks.values())


def stacked(images: Sequence[ValidPng]) -> bytearray:
    """Return a PNG file of images of one kind, one below the other, a row of zeros between two."""
    kind, height, pixels, _ = images[0]
    if len(images) > 1:
        rows = bytes(kind.row_bytes).join(image.rows or b"" for image in images)
        height, pixels = len(rows) // kind.row_bytes, zlib.compress(rows, 0)
    header = struct.pack(">IIBBBBB", kind.width, height, kind.depth, kind.colour, 0, 0, 0)
    file = bytearray(_SIGNATURE)
    for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data
        file += struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
    return file


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


def _inflated(pixels: bytes, height: int, row: int) -> bytes:
    """Return the `height` rows of `row` bytes; raise for another size or an unknown filter."""
    inflate = zlib.decompressobj()
    # One byte more than the image has tells a whole one from a bomb.
    rows = inflate.decompress(pixels, height * row + 1)
    if len(rows) != height * row or not inflate.eof or inflate.unused_data:
        raise _damaged(f"the pixels are not the {height * row} bytes that the header promises")
    if max(rows[::row]) > 4:  # the first byte of a row names one of five filters
        raise _damaged("a row has an unknown filter")
    return rows


def _damaged(detail: str) -> SampleError:
    return SampleError(f"the PNG image is damaged ({detail})", reason="image")
