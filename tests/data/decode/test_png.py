"""PNG files that are validated decode to the pixels of Pillow, alone and in stacks."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from aae_dist.data.decode import formats
from aae_dist.data.decode.formats import ValidPng, validate_png
from aae_dist.data.decode.images import NO_RESIZE, decode_images, decode_pngs
from aae_dist.errors import SampleError

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
RANDOM = np.random.default_rng(0)


def png(height: int, width: int, depth: int = 8, colour: int = 0) -> bytes:
    """Return an image of noise in which each row has a filter drawn at random."""
    row = width * CHANNELS[colour] * depth // 8
    rows = RANDOM.integers(0, 256, (height, 1 + row), np.uint8)
    rows[:, 0] = RANDOM.integers(0, 5, height)
    return written(height, width, depth, colour, rows.tobytes())


def written(height: int, width: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def validated(files: list[bytes]) -> dict[int, ValidPng | None]:
    return {number: validate_png(data) for number, data in enumerate(files)}


def mixed() -> Iterator[bytes]:
    for _ in range(3):
        for height, width in ((5, 7), (1, 7), (9, 7), (5, 3), (1, 1)):
            for depth in (8, 16):
                for colour in CHANNELS:
                    yield png(height, width, depth, colour)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_mixture_decodes_as_each_image_alone(channels: int) -> None:
    files = validated(list(mixed()))
    together = decode_pngs(files, channels)
    assert len(together) == 120
    for number, file in files.items():
        [alone] = decode_pngs({7: file}, channels).values()
        assert np.array_equal(together[number], alone)


def grey_of(samples: np.ndarray, channels: int) -> np.ndarray:
    """Return grey samples, uint8 [H, W], as an image of 1 or 3 channels, uint8 [C, H, W]."""
    return np.repeat(samples[None], channels, axis=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixture_with_alpha_and_16_bits_has_the_pixels_of_pillow(channels: int) -> None:
    """Alpha is dropped, and of 16 bits the high ones count; Pillow reads the samples themselves."""
    files, wanted = [], []
    for height, width in ((5, 7), (1, 7), (9, 7), (5, 3)) * 3:
        grey_alpha, rgba = png(height, width, 8, 4), png(height, width, 8, 6)
        deep = png(height, width, 16, 0)
        files += [grey_alpha, deep]
        with Image.open(io.BytesIO(grey_alpha)) as image:
            assert image.mode == "LA"
            wanted.append(grey_of(np.array(image)[..., 0], channels))
        with Image.open(io.BytesIO(deep)) as image:
            assert image.mode.startswith("I")
            wanted.append(
                grey_of((np.array(image).astype(np.int64) >> 8).astype(np.uint8), channels)
            )
        if channels == 3:
            files.append(rgba)
            with Image.open(io.BytesIO(rgba)) as image:
                assert image.mode == "RGBA"
                wanted.append(np.array(image)[..., :3].transpose(2, 0, 1))
    decoded = decode_pngs(validated(files), channels)
    assert len(decoded) == len(files)
    for number, image in enumerate(wanted):
        assert np.array_equal(decoded[number], image)


@pytest.mark.parametrize(("colour", "mode"), [(0, "L"), (2, "RGB")])
def test_every_filter_gives_the_pixels_of_pillow(colour: int, mode: str) -> None:
    files = [png(height, 7, 8, colour) for height in (6, 1, 8, 3) * 10]
    decoded = decode_pngs(validated(files), CHANNELS[colour])
    for number, data in enumerate(files):
        wanted = np.array(Image.open(io.BytesIO(data)).convert(mode))
        planes = wanted.reshape(*wanted.shape[:2], -1).transpose(2, 0, 1)
        assert np.array_equal(decoded[number], planes)


@pytest.mark.parametrize(
    ("height", "width", "colour"), [(240, 350, 2), (4, 20_000, 2), (3, 60_000, 0)]
)
def test_large_images_have_the_pixels_of_pillow(height: int, width: int, colour: int) -> None:
    data = png(height, width, 8, colour)
    [image] = decode_pngs(validated([data]), CHANNELS[colour]).values()
    wanted = np.array(Image.open(io.BytesIO(data))).reshape(height, width, -1)
    assert np.array_equal(image, wanted.transpose(2, 0, 1))


def test_pixels_in_several_chunks_are_one_image() -> None:
    data = png(5, 7)
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    pixels, end = data[start + 8 : start + 8 + length], data[start + 12 + length :]
    parts = [pixels[:9], b"", pixels[9:10], pixels[10:]]
    split = data[:start] + b"".join(chunk(b"IDAT", part) for part in parts) + end
    whole, apart = decode_pngs(validated([data, split]), 1).values()
    assert np.array_equal(whole, apart)


def test_a_stack_is_no_taller_than_libpng_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    files = validated([png(4, 3) for _ in range(7)] + [png(14, 3)])
    wanted = decode_pngs(files, 1)
    monkeypatch.setattr(formats, "MAX_SIDE", 14)
    found = list(formats.stacks(files))  # type: ignore[arg-type]
    assert found == [[0, 1, 2], [3, 4, 5], [6], [7]]  # 4 + 1 + 4 + 1 + 4 rows
    again = decode_pngs(files, 1)
    assert all(np.array_equal(wanted[number], again[number]) for number in files)


@pytest.mark.parametrize(
    ("height", "width", "colour"), [(240, 350, 2), (4, 20_000, 2), (3, 60_000, 0)]
)
def test_stored_rows_that_take_many_blocks_are_decoded(
    height: int, width: int, colour: int
) -> None:
    # Stored blocks hold up to 64 KiB; libpng bounds a chunk by the length that it expects.
    files = validated([png(height, width, 8, colour) for _ in range(12)])
    together = decode_pngs(files, 3)
    assert len(together) == 12
    for number, file in files.items():
        [alone] = decode_pngs({0: file}, 3).values()
        assert np.array_equal(together[number], alone)


def test_a_large_image_is_not_held_inflated() -> None:
    files = validated([png(4, 3), png(700, 900, 16, 6), png(4, 3)])
    assert [file is not None and file.rows is None for file in files.values()] == [
        False,
        True,
        False,
    ]
    decoded = decode_pngs(files, 3)
    assert [image.shape for image in decoded.values()] == [(3, 700, 900), (3, 4, 3), (3, 4, 3)]


def test_a_damaged_image_takes_none_of_its_neighbours_with_it() -> None:
    files = dict(enumerate(png(5, 7) for _ in range(6)))
    rows = np.zeros((6, 1, 5, 7), np.uint8)
    decode_images(rows, files, NO_RESIZE, {})
    files[2] = files[2][:-30]
    files[4] = written(5, 7, 8, 0, bytes([9]) * 40)
    files[5] = written(5, 7, 8, 0, bytes(48))
    again, bad = np.zeros_like(rows), {}
    decode_images(again, files, NO_RESIZE, bad)
    assert sorted(bad) == [2, 4, 5]
    assert all(isinstance(error, SampleError) for error in bad.values())
    assert (again[[0, 1, 3]] == rows[[0, 1, 3]]).all()
