import contextlib
import importlib
import io
import struct

import numpy as np
import pytest
import torch
from helpers.shards import encoded, image_of
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aae_dist.data.decode import images
from aae_dist.data.decode.formats import read_header, validate_png
from aae_dist.data.decode.images import decode_image
from aae_dist.data.decode.sample import parse_label
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.index.build import open_manifest
from aae_dist.errors import DataError, SampleError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
GREY = COLOUR[:, :, 0].copy()
FORMATS = {"PNG": {}, "JPEG": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", FORMATS)
def test_header_tells_shape_before_decoding(kind: str, image: np.ndarray) -> None:
    header = read_header(encoded(image, kind, **FORMATS[kind]))
    assert header is not None
    channels = 3 if image.ndim == 3 or kind == "WEBP" else 1
    assert header[:5] == (kind, channels, 5, 7, 1)


def test_progressive_jpeg_and_lossy_and_extended_webp_have_headers_too() -> None:
    assert read_header(encoded(COLOUR, "JPEG", progressive=True))[1:5] == (3, 5, 7, 1)
    assert read_header(encoded(COLOUR, "WEBP"))[1:5] == (3, 5, 7, 1)
    assert read_header(encoded(COLOUR, "WEBP", exif=b"Exif\0\0"))[1:5] == (3, 5, 7, 1)


def test_large_images_are_decoded_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PIXELS_PER_GROUP", 80)
    files = {n: encoded(COLOUR, "PNG") for n in range(5)}  # 35 pixels each
    rows, sizes = np.zeros((5, 3, 5, 7), np.uint8), []
    decode_pngs = images.decode_pngs

    def recorded(group: dict[int, object], channels: int) -> object:
        sizes.append(len(group))
        return decode_pngs(group, channels)

    monkeypatch.setattr(images, "decode_pngs", recorded)
    images.decode_images(rows, files, images.NO_RESIZE, {})
    assert sizes == [2, 2, 1]
    assert all((row == COLOUR.transpose(2, 0, 1)).all() for row in rows)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_images_come_back_exactly(kind: str) -> None:
    decoded = decode_image(encoded(COLOUR, kind, **FORMATS[kind]))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", FORMATS)
def test_grey_and_colour_are_converted(kind: str) -> None:
    data = encoded(COLOUR, kind, **FORMATS[kind])
    grey = decode_image(data, (1, 5, 7))
    expected = np.tensordot([0.299, 0.587, 0.114], decode_image(data), 1)
    assert np.abs(grey[0] - expected).max() < 2.5
    colour = decode_image(encoded(GREY, kind, **FORMATS[kind]), (3, 5, 7))
    assert np.array_equal(colour[0], colour[1])


def test_torchvision_and_pillow_agree_on_real_digits() -> None:
    shard = open_manifest("builtin://digits/validation").shards[0]
    reader = ShardReader(shard)
    for sample in range(0, len(reader), 10):
        data = reader.fields(sample)["png"]
        header = read_header(data)
        assert header is not None
        [fast] = images.decode_pngs({0: validate_png(data)}, 1).values()
        assert np.array_equal(fast, images._decode_with_pillow(data, header, 1))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("how", ["baseline", "progressive", "optimize", "restart_marker_blocks"])
def test_jpeg_pixels_equal_those_of_torchvision_and_pillow(how: str, subsampling: int) -> None:
    images._load_decoders()
    for height, width in [(1, 1), (5, 7), (8, 16), (17, 33), (64, 64)]:
        image = np.resize(COLOUR, (height, width, 3))
        colour = encoded(image, "JPEG", subsampling=subsampling, **{how: 1})
        for data in (colour, encoded(image[:, :, 0].copy(), "JPEG", **{how: 1})):
            header = read_header(data)
            pillow = images._decode_with_pillow(data, header, header.channels)
            assert np.array_equal(decode_image(data), pillow)
            file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for channels in (1, 3):
                [fast] = images.decode_jpegs({0: data}, [0], channels).values()
                assert np.array_equal(fast, torch.ops.image.decode_jpeg(file, channels, False))


def test_a_jpeg_with_any_byte_flipped_or_cut_off_ends_no_process() -> None:
    data = encoded(np.resize(COLOUR, (16, 16, 3)), "JPEG")
    whole = decode_image(data).shape
    for place in range(len(data) - 2):
        flipped = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        with contextlib.suppress(SampleError):  # a wrong number in the pixels' data shows nowhere
            assert decode_image(flipped, whole).shape == whole
        with pytest.raises(SampleError):
            decode_image(data[:place], whole)


@pytest.mark.parametrize("marker", [0x00, 0x01, *range(0xD0, 0xDA)])
def test_a_jpeg_that_hides_its_frame_is_refused(marker: int) -> None:
    # libjpeg reads on behind a marker without a length. It would see the frame that we skip.
    data = encoded(COLOUR, "JPEG")
    place = data.index(b"\xff\xc0")
    frame = data[place : place + 19]
    length = struct.pack(">H", 2 + len(frame))
    for hiding, found in ((marker, None), (0xFE, read_header(data))):
        hidden = data[:2] + bytes([0xFF, hiding]) + length + frame + data[2:]
        assert read_header(hidden) == found


@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_cmyk_and_damaged_jpeg_have_the_pixels_of_torchvision(kind: str) -> None:
    images._load_decoders()
    ink = Image.fromarray(np.resize(COLOUR, (16, 16, 4)), "CMYK")
    with io.BytesIO() as buffer:
        ink.save(buffer, "JPEG", quality=90)
        data = bytearray(buffer.getvalue())
    if kind == "YCCK":
        data[data.index(b"Adobe") + 11] = 2
    files = [bytes(data)]
    scan = data.index(b"\xff\xda") + 20
    for place in range(scan, scan + 60):  # wrong codes: simplejpeg refuses, Pillow does not
        files.append(bytes(data[:place]) + bytes([data[place] ^ 0x11]) + bytes(data[place + 1 :]))
    num_equal = 0
    for file in files:
        for channels in (1, 3):
            with contextlib.suppress(SampleError, RuntimeError):
                decoded = decode_image(file, (channels, 16, 16))
                tensor = torch.frombuffer(bytearray(file), dtype=torch.uint8)
                expected = torch.ops.image.decode_jpeg(tensor, channels, False)
                assert np.array_equal(decoded, expected)
                num_equal += 1
    assert num_equal > 2


def test_16_bit_and_palette_png_are_read() -> None:
    deep = (GREY.astype(np.uint16) << 8) + 77
    assert np.array_equal(decode_image(encoded(deep))[0], GREY)
    palette = Image.fromarray(COLOUR).quantize(16)
    with io.BytesIO() as buffer:
        palette.save(buffer, "PNG")
        decoded = decode_image(buffer.getvalue())
    assert np.array_equal(decoded, np.array(palette.convert("RGB")).transpose(2, 0, 1))


def test_another_size_is_an_error_that_says_both() -> None:
    with pytest.raises(DataError, match="5 x 7 pixels, wanted 28 x 28"):
        decode_image(encoded(GREY), (1, 28, 28))


def bomb() -> bytes:
    data = bytearray(encoded(GREY))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(100), "not a PNG, JPEG or WebP"),
        (b"\xff\xd8\xff", "not a PNG, JPEG or WebP"),
        (encoded(GREY)[:60], "image is damaged"),
        (encoded(COLOUR, "JPEG")[:-30], "image is damaged"),
        (encoded(COLOUR, "WEBP")[:40], "image is damaged"),
        (bomb(), "at most 67108864 are read"),
    ],
)
def test_damaged_or_foreign_bytes_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "label"), [(b"7", 7), (b" 12\n", 12), (b"-1", -1), (b"007", 7), (b"10.0", 10)]
)
def test_labels_are_integers_in_ascii(data: bytes, label: int) -> None:
    assert parse_label(data) == label


@pytest.mark.parametrize("data", [b"", b"1.5", b"1e9", b"NaN", b"9" * 5_000_000, "٣".encode()])
def test_other_labels_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="label is not an integer"):
        parse_label(data)


def test_decoders_load_without_importing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"imports {name}, which takes seconds")

    monkeypatch.setattr(importlib, "import_module", refuse)
    images._load_decoders.cache_clear()
    images._load_decoders()


def test_a_png_with_any_byte_flipped_or_cut_off_is_refused_and_ends_no_process() -> None:
    # torchvision's decoder ends the process with a segmentation fault on most of these.
    data = encoded(image_of(1))
    pixels_end = data.index(b"IEND") - 4
    for place in range(pixels_end):
        flipped = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        for damaged in (flipped, data[:place]):
            with pytest.raises(SampleError):
                decode_image(damaged, (1, 4, 4))


@pytest.mark.parametrize("kind", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_png_of_every_kind_decodes_as_pillow_does(kind: str) -> None:
    buffer = io.BytesIO()
    picture = Image.fromarray(image_of(5, 3)).convert(kind)
    picture.save(buffer, "PNG", pnginfo=PngInfo(), dpi=(72, 72))
    for channels, mode in ((1, "L"), (3, "RGB")):
        got = decode_image(buffer.getvalue(), (channels, 4, 4)).transpose(1, 2, 0)
        expected = np.array(picture.convert(mode)).reshape(got.shape)
        # Grey from colour is rounded differently by one.
        assert np.abs(got.astype(int) - expected).max() <= (
            channels == 1 and kind in ("RGB", "RGBA")
        )
