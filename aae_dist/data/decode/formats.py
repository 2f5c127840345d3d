"""Image files read before any decoding: size, channels and EXIF orientation; PNG validated.

torchvision 0.29 does not survive libpng's errors: one flipped bit in an image ends the process with
a segmentation fault. A PNG file that passes leaves libpng nothing to complain about.

A call of torchvision costs 16 us per digit, and 2 us per further digit of a stack: a third of the
first pass over MNIST. Validation has inflated the rows of an image, so those of many images are
placed below one another and stored without compression. Filters look at the row above and at
nothing else, and above an image's first row they see zeros (PNG specification, section 9.2): a row
of zeros lies between two images.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from aae_dist.data.bad_samples import UnusedKind
from aae_dist.errors import SampleError

Format = Literal["PNG", "JPEG", "WEBP"]

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # grey, colour, palette, grey and colour with alpha
_JPEG_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)))
_JPEG_APP1 = 0xE1
_JPEG_ARITHMETIC = 0xC9  # the first frame marker of arithmetic coding
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # one that ends a scan's data
MAX_SCANS = 100
"""Scans of a JPEG. Encoders write 1 to 20. An empty one takes a byte and visits all blocks: 20,000
of them, 2 MB, take minutes."""
MAX_SCANNED_PIXELS, MAX_ARITHMETIC_PIXELS = 1 << 31, 1 << 25
"""Pixels times scans of a JPEG: an empty scan takes 0.1 ns per pixel, and arithmetic coding up to
40 ns, also where data lack."""
MAX_CHUNKS = 1 << 17
"""Chunks of a PNG or WebP file; an image of 1 GiB in chunks of 8 KiB has as many."""
_JPEG_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers that must not precede the frame: a decoder could see another frame behind them."""
_WEBP_HAS_EXIF, _WEBP_HAS_ALPHA, _WEBP_HAS_FRAMES = 0x08, 0x10, 0x02
_PNG_WITH_ALPHA = frozenset((4, 6))
_PNG_HEAD_BYTES = 2048  # the chunks for transparency and animation precede the pixels
PREFIX = b"Exif\0\0"  # start of EXIF data, always in JPEG, and in WebP of some writers
_ORIENTATION, _SHORT = 274, 3
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""By orientation: axes of [C, H, W] to mirror, after rows and columns are exchanged (from 5 on)."""


class ImageHeader(NamedTuple):
    """Header of an image file; height and width are those of the upright image."""

    format: Format
    channels: int  # 1 for grey, 3 for colour; alpha not counted
    height: int
    width: int
    orientation: int = 1  # EXIF orientation, 1 to 8; 1 is upright
    is_cmyk: bool = False  # whether a JPEG has four components, as for printing
    unused: tuple[UnusedKind, ...] = ()  # what of the file is left out when it is decoded
    is_arithmetic: bool = False  # whether a JPEG is arithmetic-coded


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
    except Exception:  # noqa: BLE001, S110 - any bytes may stand where numbers should
        pass
    return None


def _png_header(data: bytes) -> ImageHeader | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    # Few PNG files have EXIF data: the chunks are parsed only if its name occurs.
    exif = next(_chunks(data, 8, b"eXIf", ">I"), b"") if b"eXIf" in data else b""
    depth, colour, unused = data[24], data[25], tuple[UnusedKind, ...]()
    if depth == 16:
        unused = ("depth",)
    if colour in _PNG_WITH_ALPHA or b"tRNS" in data[:_PNG_HEAD_BYTES]:
        unused += ("alpha",)
    if b"acTL" in data[:_PNG_HEAD_BYTES]:
        unused += ("frames",)
    turn = orientation(exif)
    return ImageHeader("PNG", _PNG_CHANNELS[colour], height, width, turn, unused=unused)


def check_scans(data: bytes, header: ImageHeader) -> None:
    """Raise SampleError if a JPEG has so many scans that decoding it would take too long."""
    # An upper bound that costs no loop: a scan's data never contain the marker.
    most = data.count(b"\xff\xda")
    if most > MAX_SCANS:
        most = _count_scans(data)
    if most > MAX_SCANS:
        raise SampleError(f"a JPEG of more than {MAX_SCANS} scans", reason="image")
    pixels = header.height * header.width
    limit = MAX_ARITHMETIC_PIXELS if header.is_arithmetic else MAX_SCANNED_PIXELS
    if most * pixels > limit and (exact := _count_scans(data)) * pixels > limit:
        kind = "an arithmetic-coded JPEG" if header.is_arithmetic else "a JPEG"
        raise SampleError(
            f"{kind} of {exact} scans and {pixels} pixels; scans x pixels may be {limit}",
            reason="image",
        )


def _count_scans(data: bytes) -> int:
    """Return the scans of a JPEG, up to one more than are allowed; not those of its thumbnails."""
    scans, position = 0, 2
    while scans <= MAX_SCANS and (found := _JPEG_MARKER.search(data, position)):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker not in _JPEG_WITHOUT_LENGTH or marker == _START_OF_SCAN:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans


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
            header = ImageHeader("JPEG", channels, height, width, turn, components == 4)
            return header._replace(is_arithmetic=marker >= _JPEG_ARITHMETIC)
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
        unused: tuple[UnusedKind, ...] = ("alpha",) if bits >> 28 & 1 else ()
        height, width = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        return ImageHeader("WEBP", 3, height, width, unused=unused)
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        exif = next(_chunks(data, 12, b"EXIF", "<I"), b"") if data[20] & _WEBP_HAS_EXIF else b""
        has_alpha, has_frames = data[20] & _WEBP_HAS_ALPHA, data[20] & _WEBP_HAS_FRAMES
        unused = (*(("alpha",) if has_alpha else ()), *(("frames",) if has_frames else ()))
        return ImageHeader("WEBP", 3, height, width, orientation(exif), unused=unused)
    return None


def _chunks(data: bytes, position: int, kind: bytes, length: str) -> Iterator[bytes]:
    """Yield the contents of the chunks of one kind, of a PNG (length first) or a WebP file."""
    first = length == ">I"
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        (size,) = struct.unpack_from(length, data, position if first else position + 4)
        if data[position + 4 * first : position + 4 * first + 4] == kind:
            yield data[position + 8 : position + 8 + size]
        # A PNG's checksum follows; WebP pads to even places.
        position += 8 + size + (4 if first else size % 2)


def orientation(data: bytes) -> int:
    """Return the orientation of EXIF data (with or without `PREFIX`), 1 to 8; by default 1."""
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


def apply_orientation(
    image: np.typing.NDArray[np.uint8], orientation: int
) -> np.typing.NDArray[np.uint8]:
    """Return the stored image [C, H, W] upright, [C, H, W] or [C, W, H]."""
    if orientation == 1:
        return image
    turned = image.transpose(0, 2, 1) if swaps_axes(orientation) else image
    return np.flip(turned, _FLIPS.get(orientation, ()))


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # grey, colour, each also with alpha; no palettes
MAX_SIDE = 1_000_000  # libpng refuses longer sides
_KINDS = frozenset((b"IHDR", b"IDAT", b"PLTE"))
_ANCILLARY = 0x20  # bit of a chunk's first letter: a decoder may ignore it
_OVERHEAD = 12  # bytes of a chunk next to its data: length, kind, checksum
_MAX_STACKED_BYTES = 1 << 18  # inflated rows kept to be stacked; libpng inflates larger images


class PngKind(NamedTuple):
    """Properties that the images of one stack have in common."""

    width: int
    depth: int  # bits per channel: 8 or 16
    colour: int  # PNG's number of the colour type; a key of `_PNG_SAMPLES`

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of pixels: its filter's number and the pixels."""
        return 1 + self.width * _PNG_SAMPLES[self.colour] * self.depth // 8


class ValidPng(NamedTuple):
    """An image that libpng decodes without an error."""

    kind: PngKind
    height: int
    pixels: bytes  # compressed, as in the file
    rows: bytes | None
    """Those of a small image inflated but still filtered: `height` rows of `kind.row_bytes`."""


def validate_png(data: bytes) -> ValidPng | None:
    """Return the image, or None when its kind is unusual; some 10 us for 28 x 28 pixels.

    Raises SampleError for a damaged file: cut off, a wrong checksum, too few or too many pixels.
    """
    try:
        chunks = _png_chunks(data)
        header = chunks[0]
        width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", header, 8)
        is_known = colour in _PNG_SAMPLES and depth in (8, 16) and not any(methods)
        kinds = {chunk[4:8] for chunk in chunks if not chunk[4] & _ANCILLARY}
        if not is_known or kinds - _KINDS or any(chunk[4:8] == b"tRNS" for chunk in chunks):
            return None
        if len(header) != 13 + _OVERHEAD or not 0 < max(width, height) <= MAX_SIDE:
            return None
        kind = PngKind(width, depth, colour)
        pixels = b"".join(chunk[8:-4] for chunk in chunks if chunk[4:8] == b"IDAT")
        rows = _inflated(pixels, height, kind.row_bytes)
    except (struct.error, zlib.error, IndexError, ValueError) as error:
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


def _png_chunks(data: bytes) -> list[bytes]:
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
        if len(found) > MAX_CHUNKS:
            raise _damaged(f"more than {MAX_CHUNKS} chunks")


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
