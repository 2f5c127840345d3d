"""Many small PNG as one tall image, to be decoded in one call.

A call of torchvision costs 30 us for a digit, and 2 us for each further digit of a stack. The proof
of an image has inflated its rows, so those of many images are put below one another and stored
without compression. Filters look at the row above and at nothing else, and above an image's
first row they see zeros (PNG specification, section 9.2): a row of zeros lies between two images.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

from aae_dist.data.png_check import MAX_SIDE, SIGNATURE, PngKind, ProvenPng


def stacks(images: Mapping[int, ProvenPng]) -> Iterator[list[int]]:
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


def stacked(images: Sequence[ProvenPng]) -> bytearray:
    """Return a PNG file of images of one kind, one below the other, a row of zeros between two."""
    kind, height, pixels, _ = images[0]
    if len(images) > 1:
        rows = bytes(kind.row_bytes).join(image.rows or b"" for image in images)
        height, pixels = len(rows) // kind.row_bytes, zlib.compress(rows, 0)
    header = struct.pack(">IIBBBBB", kind.width, height, kind.depth, kind.colour, 0, 0, 0)
    file = bytearray(SIGNATURE)
    for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data
        file += struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
    return file
