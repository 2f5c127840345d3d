"""Work is bounded before a decoder begins, and whatever a decoder raises is one sample's hole."""

import io
import resource
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shards import encoded, image_of, sample
from PIL import Image
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, open_dataset
from aae_dist.data.decode import formats, images, sample as decoding
from aae_dist.data.decode.images import decode_image
from aae_dist.data.memory import MemoryBudget
from aae_dist.errors import DataError, SampleError

MAX_CPU_SECONDS = 2.0


def opened(folder: Path, fields: dict[str, bytes], **settings: Any) -> Dataset:
    """Return a data set of a good sample, one with `fields`, and another good one."""
    with TarWriter(str(folder / "a.tar")) as writer:
        name = next(iter(fields))
        good = [sample(0), sample(2)]
        if name == "npy":
            good = [{"__key__": f"{n:06d}", "npy": array((4,), n + 1)} for n in (0, 2)]
        for written in (good[0], {"__key__": "bad", **fields}, good[1]):
            writer.write(written)
    data = Data.model_validate({"train": str(folder), **settings})
    return open_dataset(data.train, data)


def array(shape: Any, value: float = 0.0) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full(shape, value, np.float32))
    return file.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data
    )


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_scans(count: int, side: int = 8192, frame: int = 0xC2, parts: int = 1) -> bytes:
    """Return a JPEG of `count` further scans that visit every block and say nothing."""
    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    components = b"".join(bytes((n, 0x11, 0)) for n in range(1, parts + 1))
    head += segment(frame, struct.pack(">BHHB", 8, side, side, parts) + components)
    head += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(
        0xC4, b"\x10\1" + bytes(15) + b"\xe0"
    )
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-((side // 8) ** 2) // 8))
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + b"\xaa" * 100
    return head + first + scan * count + b"\xff\xd9"


def chunk(kind: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def png(width: int, height: int, depth: int, colour: int, data: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def webp(width: int, height: int) -> bytes:
    """Return the header of a lossless WebP file."""
    bits = (width - 1) | (height - 1) << 14
    body = b"WEBPVP8L" + struct.pack("<IBI", 8, 0x2F, bits) + bytes(3)
    return b"RIFF" + struct.pack("<I", len(body)) + body


HOSTILE = {
    "jpeg of 101 scans": ("jpg", lambda: jpeg_of_scans(101), "more than 100 scans"),
    "jpeg of 20,000 scans": ("jpg", lambda: jpeg_of_scans(20_000), "more than 100 scans"),
    "jpeg of 60 scans": ("jpg", lambda: jpeg_of_scans(60), "a JPEG of 61 scans and 67108864 pix"),
    "jpeg, arithmetic": (
        "jpg",
        lambda: jpeg_of_scans(50, frame=0xCA),
        "arithmetic-coded JPEG of 51",
    ),
    "jpeg, arithmetic, plain": (
        "jpg",
        lambda: jpeg_of_scans(0, frame=0xC9),
        "JPEG of 1 scans and 67108864",
    ),
    "jpeg of four components": ("jpg", lambda: jpeg_of_scans(0, parts=4), "at most 33554432"),
    "jpeg without its data": ("jpg", lambda: jpeg_of_scans(1)[:300], "too large to be decoded in"),
    "webp of few bytes": ("webp", lambda: webp(8192, 8192), "at most 33554432 are read"),
    "png of 16 bits": ("png", lambda: png(8192, 8192, 16, 6, b""), "pixels; at most 33554432"),
    "png of chunks": (
        "png",
        lambda: png(4, 4, 8, 0, b"", chunk(b"teXt", b"") * 200_000),
        "more than 131072 chunks",
    ),
    "npy of a bool": (
        "npy",
        lambda: npy("{'descr':'<f4','fortran_order':False,'shape':(True,)}", bytes(4)),
        r"shape \(True,\)",
    ),
    "npy of a text": (
        "npy",
        lambda: npy("{'descr':'<f4','fortran_order':False,'shape':('a',)}", bytes(4)),
        "not a .npy array",
    ),
    "npy of brackets": ("npy", lambda: npy("(" * 9000), "not a .npy array"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sample_is_a_hole_in_two_seconds(tmp_path: Path, name: str) -> None:
    field, make, problem = HOSTILE[name]
    keys = {"image_keys": ("npy",)} if field == "npy" else {"image_size": 4}
    dataset = opened(tmp_path, {field: make()}, **keys)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    samples = dataset.load([0, 1, 2])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < MAX_CPU_SECONDS
    assert list(samples.bad) == [1]
    with pytest.raises(DataError, match=problem) as caught:
        dataset.read([1])
    assert "sample 'bad'" in str(caught.value)


def test_scans_in_thumbnails_and_stuffed_bytes_are_none_of_the_image(tmp_path: Path) -> None:
    small = encoded(image_of(1, 3), "JPEG", progressive=True)
    thumbnails = segment(0xEF, b"\xff\xda" * 500) + segment(0xFE, b"\xff\xda" * 500)
    assert decode_image(small[:2] + thumbnails + small[2:]).shape == (3, 4, 4)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", progressive=True, quality=100)
    assert decode_image(file.getvalue() + b"\xff\xda" * 500).shape == (3, 512, 512)


class Odd(Exception):  # noqa: N818 - as a decoder may raise
    """An error of no library that is known."""


@pytest.mark.parametrize(
    ("module", "function", "fields"),
    [
        (formats, "validate_png", {"png": encoded(image_of(1))}),
        (formats, "read_header", {"png": encoded(image_of(1))}),
        (images, "_decode_with_pillow", {"webp": encoded(image_of(1, 3), "WEBP")}),
        (decoding, "decode_array", {"npy": array((4,))}),
    ],
)
def test_any_exception_of_a_decoder_is_a_hole_with_its_reason_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, fields: Any
) -> None:
    keys = {"image_keys": ("npy",)} if "npy" in fields else {"channels": 1}
    dataset = opened(tmp_path, fields, decoded="none", **keys)
    plain, wanted = getattr(module, function), next(iter(fields.values()))

    def fail(data: bytes, *args: Any) -> Any:
        if data == wanted:
            raise Odd("a\nmessage")
        return plain(data, *args)

    monkeypatch.setattr(module, function, fail)
    samples = dataset.load([0, 1, 2])
    assert {row: str(error) for row, error in samples.bad.items()} == {
        1: "its decoder failed (Odd: a message)"
    }
    record = dataset.bad_sample(1, 1, samples.bad[1])
    assert (record.key, record.reason) == ("bad", "damaged")


def test_a_data_error_that_is_not_about_a_sample_ends_the_run() -> None:
    def fail(number: int) -> int:
        raise DataError("the cache has no room")

    bad: images.Bad = {}
    with pytest.raises(DataError, match="no room"):
        images.map_collecting_errors(fail, [1], bad)
    assert not bad


def test_a_sample_that_takes_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(tmp_path, {"png": encoded(image_of(1))}, decoded="none")
    may_end = threading.Event()

    def wait(data: bytes) -> Any:
        may_end.wait(10)
        raise SampleError("done")

    monkeypatch.setattr("aae_dist.data.dataset.SLOW_SECONDS", 0.05)
    assert dataset.slow_sample() == ""
    monkeypatch.setattr(formats, "validate_png", wait)
    thread = threading.Thread(target=lambda: dataset.load([1]))
    thread.start()
    time.sleep(0.2)
    named = dataset.slow_sample()
    may_end.set()
    thread.join()
    assert named.startswith("decoding bad of a.tar for 0 s")
    assert dataset.slow_sample() == ""


def test_large_images_are_decoded_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LARGE_IMAGES", MemoryBudget(30 << 20))
    monkeypatch.setattr(images, "_PIXELS_PER_GROUP", 1 << 20)
    file = encoded(np.zeros((1500, 1500), np.uint8))
    active, most = 0, 0
    plain, lock = formats.validate_png, threading.Lock()

    def noted(data: bytes) -> Any:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(0.05)
        found = plain(data)
        with lock:
            active -= 1
        return found

    monkeypatch.setattr(formats, "validate_png", noted)
    with ThreadPoolExecutor(4) as pool:
        assert [image.shape for image in pool.map(decode_image, [file] * 4)] == [
            (1, 1500, 1500)
        ] * 4
    assert most == 1


def test_who_wants_more_memory_than_there_is_has_it_alone() -> None:
    budget = MemoryBudget(10)
    with budget.reserve(100):
        pass
    with budget.reserve(5), budget.reserve(5):
        pass
