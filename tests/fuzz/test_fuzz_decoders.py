"""Files of samples: npy, PNG, JPEG and WebP, mutated and made up."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from helpers.fuzzing import MIB, bounded, fuzz, mutated
from helpers.shards import encoded, image_of
from hypothesis import strategies as st
from PIL import Image

from aae_dist.data.decode import sample as decoding
from aae_dist.data.decode.images import Resize, decode_image

COVER = Resize("cover", None)
IMAGE_BYTES = 1024 * MIB
"""Memory of the largest image that is read, 8192 x 8192 pixels, while it is decoded."""


def decode(name: str, data: bytes) -> None:
    """Read a file as a run does: its layout, and its pixels at another size."""
    with bounded(name, data, IMAGE_BYTES if name != "npy" else 64 * MIB):
        shape, dtype = decoding.layout(f"x.{name}", data, COVER)
        if name == "npy":
            row = np.empty(shape, np.float32 if dtype.is_floating_point else np.uint8)
            decoding.decode_into(row, "npy", data)
    if name != "npy":
        with bounded(name, data, IMAGE_BYTES):
            assert decode_image(data, (3, 8, 8), COVER).shape == (3, 8, 8)


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


ARRAYS = [
    npy(np.arange(12, dtype=np.float32).reshape(3, 4)),
    npy(np.zeros((1, 2, 3), np.uint8), version=(2, 0)),
    npy(np.asfortranarray(np.zeros((2, 3), np.float32))),
    npy(np.zeros(5, np.float64)),
    npy(np.zeros(2, [("a", "<f4"), ("b", "u1")])),
]


@fuzz(data=mutated(ARRAYS))
def test_arrays_that_were_changed(data: bytes) -> None:
    decode("npy", data)


_SHAPES = st.recursive(
    st.sampled_from(("1", "2", "-1", "0", "True", "None", "'a'", "1.0", "10**9", "9" * 400, "1j")),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: f"({','.join(parts)},)"),
)
_DTYPES = st.sampled_from(("'<f4'", "'|u1'", "'|O'", "'<M8[ns]'", "[('a','<f4')]", "3", "'V9'"))


@fuzz(shape=_SHAPES, dtype=_DTYPES, order=st.sampled_from(("True", "False", "2", "'x'")))
def test_arrays_with_odd_headers(shape: str, dtype: str, order: str) -> None:
    header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    for version, size in ((b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I")):
        packed = struct.pack(size, len(header) % (1 << 16))
        decode("npy", b"\x93NUMPY" + version + packed + header + bytes(8))


# PNG.


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _pngs() -> list[bytes]:
    colour = Image.fromarray(image_of(3, 3))
    found = [encoded(image_of(1)), encoded(image_of(2, 3)), encoded(np.zeros((40, 30), np.uint8))]
    for mode in ("P", "1", "RGBA", "LA", "I;16"):
        file = io.BytesIO()
        (colour.convert("L") if mode == "I;16" else colour).convert(mode).save(file, "PNG")
        found.append(file.getvalue())
    return found


PNGS = _pngs()


@fuzz(data=mutated(PNGS))
def test_pngs_that_were_changed(data: bytes) -> None:
    decode("png", data)


_SIDES = st.sampled_from((0, 1, 2, 3, 8, 255, 4096, 8192, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31))
_KINDS = st.sampled_from(
    (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"sBIT", b"zTXt", b"ABCD")
)


@fuzz(
    sides=st.tuples(_SIDES, _SIDES),
    depth=st.sampled_from((1, 2, 4, 8, 16, 3, 0)),
    colour=st.integers(0, 7),
    interlace=st.integers(0, 2),
    extra=st.lists(st.tuples(_KINDS, st.binary(max_size=40)), max_size=3),
    rows=st.tuples(st.integers(0, 64), st.sampled_from((b"\0", b"\4", b"\1\2\3\4", b"\xff"))),
    is_whole=st.booleans(),
)
def test_pngs_of_odd_chunks(
    sides: tuple[int, int], depth: int, colour: int, interlace: int, extra: Any, rows: Any,
    is_whole: bool,
) -> None:  # fmt: skip
    width, height = sides
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    wanted = height * (1 + (width * depth * {0: 1, 2: 3, 4: 2, 6: 4}.get(colour, 1) + 7) // 8)
    pixels = (rows[1] * 64)[: rows[0]] if not is_whole or wanted > 1 << 20 else bytes(wanted)
    more = [chunk(kind, body) for kind, body in extra]
    decode("png", png(chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(pixels, 1)),
                      chunk(b"IEND", b"")))  # fmt: skip


# JPEG.


def _jpegs() -> list[bytes]:
    found = []
    for size, options in (
        ((8, 8), {}),
        ((40, 24), {"progressive": True}),
        ((17, 33), {"quality": 100, "subsampling": 0}),
        ((16, 16), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    ):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        found.append(encoded(noise, "JPEG", **options))
        found.append(encoded(noise[..., 0], "JPEG", **options))
    file = io.BytesIO()
    Image.fromarray(image_of(1, 3)).convert("CMYK").save(file, "JPEG")
    return [*found, file.getvalue()]


JPEGS = _jpegs()


@fuzz(data=mutated(JPEGS))
def test_jpegs_that_were_changed(data: bytes) -> None:
    decode("jpg", data)


@st.composite
def jpegs_of_segments(draw: st.DrawFn) -> bytes:
    """Draw segments with true lengths: tables, a frame of some size and kind, and scans."""
    height, width = (draw(st.sampled_from((0, 1, 8, 64, 2048, 8192, 65535))) for _ in "hw")
    components = draw(st.sampled_from((1, 1, 3, 3, 4, 2, 0, 255)))
    frame = draw(st.sampled_from((0xC0, 0xC1, 0xC2, 0xC9, 0xCA, 0xC3, 0xC5, 0xCB)))
    sampling = draw(st.sampled_from((0x11, 0x22, 0x41, 0x14, 0x44, 0x00, 0xFF)))
    body = struct.pack(">BHHB", draw(st.sampled_from((8, 12, 2))), height, width, components)
    body += b"".join(bytes((n % 256, sampling, 0)) for n in range(1, min(components, 8) + 1))
    data = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(frame, body)
    if draw(st.booleans()):
        data += segment(0xDD, struct.pack(">H", draw(st.integers(0, 3))))
    for table in (b"\0", b"\x10"):
        data += segment(0xC4, table + b"\1" + bytes(15) + draw(st.sampled_from((b"\0", b"\xe0"))))
    for _ in range(draw(st.sampled_from((1, 1, 2, 5, 90, 101)))):
        used = min(components, draw(st.integers(1, 4)))
        spectral = draw(st.sampled_from((b"\0\0\0", b"\0\x3f\0", b"\1\x3f\0", b"\1\x3f\x21")))
        parts = b"".join(bytes((n, 0)) for n in range(1, used + 1))
        data += segment(0xDA, bytes((used,)) + parts + spectral)
        data += draw(st.sampled_from((b"", bytes(3), b"\xaa" * 100, b"\xff\0" * 40)))
    return data + draw(st.sampled_from((b"", b"\xff\xd9")))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


@fuzz(data=jpegs_of_segments())
def test_jpegs_of_odd_segments(data: bytes) -> None:
    decode("jpg", data)


# WebP.


def _webps() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    found = [encoded(noise, "WEBP"), encoded(noise[..., :3], "WEBP", lossless=True)]
    file, frames = io.BytesIO(), [Image.fromarray(noise), Image.fromarray(255 - noise)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return [*found, encoded(np.zeros((9, 9, 3), np.uint8), "WEBP"), file.getvalue()]


WEBPS = _webps()


@fuzz(data=mutated(WEBPS))
def test_webps_that_were_changed(data: bytes) -> None:
    decode("webp", data)


_RIFF = st.sampled_from((b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"EXIF", b"ICCP"))
_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([data[20:] for data in WEBPS]),
    st.tuples(st.integers(0, 255), st.sampled_from((0, 7, 8191, (1 << 24) - 1))).map(
        lambda pair: bytes((pair[0], 0, 0, 0)) + pair[1].to_bytes(3, "little") * 2
    ),
)


@fuzz(chunks=st.lists(st.tuples(_RIFF, _BODIES), min_size=1, max_size=6), wrong=st.integers(-2, 2))
def test_webps_of_odd_chunks(chunks: Any, wrong: int) -> None:
    body = b"WEBP"
    for kind, data in chunks:
        body += kind + struct.pack("<I", max(0, len(data) + wrong)) + data + b"\0" * (len(data) % 2)
    decode("webp", b"RIFF" + struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize("data", [*ARRAYS, *PNGS, *JPEGS, *WEBPS], ids=lambda _: "")
@pytest.mark.parametrize("cut", [1, 3, 12, 40])
def test_files_cut_at_every_part(data: bytes, cut: int) -> None:
    names = {ARRAYS[0][:4]: "npy", PNGS[0][:4]: "png", JPEGS[0][:4]: "jpg"}
    name = names.get(data[:4], "webp" if data[:4] == b"RIFF" else "jpg")
    decode(name, data[: len(data) * (cut - 1) // cut])
