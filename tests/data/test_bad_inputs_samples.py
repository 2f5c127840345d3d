"""Samples with bad fields: each is a counted hole, runs nothing and spoils no other sample."""

import gzip
import io
import json
import pickle
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shards import SIDE, encoded, image_of, sample
from helpers.watch import nothing_but
from PIL import Image
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import BatchLoader, Dataset, SampleOrder, open_dataset


class Payload:
    """What a pickle of it does: make a file called canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("canary", "w"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; programs that a decoder might start leave a canary in it."""
    work, programs = tmp_path / "work", tmp_path / "programs"
    work.mkdir()
    programs.mkdir()
    for name in ("gs", "gswin32c", "sh", "touch", "curl", "aws", "convert", "rsvg-convert"):
        (programs / name).write_text(f"#!/bin/bash\n: > {work}/canary\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    yield work
    assert not list(tmp_path.rglob("canary*"))


def opened(folder: Path, fields: dict[str, bytes], **settings: Any) -> Dataset:
    """Return a data set of a good sample, one with `fields`, and another good one."""
    with TarWriter(str(folder / "a.tar")) as writer:
        for written in (sample(0), {"__key__": "bad", **fields}, sample(2)):
            writer.write(written)
    data = Data.model_validate({"train": str(folder), **settings})
    return open_dataset(data.train, data)


def assert_hole(dataset: Dataset, reason: str) -> None:
    """A batch of the three samples has one hole, listed with its reason, and the others whole."""
    order = SampleOrder([3], seed=0, global_batch_size=3, lanes=1)
    with BatchLoader(dataset, order, slice(0, 3), num_steps=1) as loader:
        [batch] = list(loader)
    numbers = batch.plan.indices.tolist()
    assert batch.valid.tolist() == [number != 1 for number in numbers]
    assert [(one.key, one.reason) for one in batch.bad] == [("bad", reason)]
    for row, number in enumerate(numbers):
        expected = image_of(number) if number != 1 else np.zeros((SIDE, SIDE))
        assert np.array_equal(batch.images[row, 0].numpy(), expected)


def png(width: int, height: int, data: bytes = b"", colour: int = 0, depth: int = 8) -> bytes:
    """Return a PNG of any claimed size with any pixel data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


GOOD = encoded(image_of(1))
JPEG = encoded(image_of(1, 3), "JPEG")
WEBP = encoded(image_of(1, 3), "WEBP")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(canary) (w) file closefile\nshowpage\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

BAD_IMAGES = {
    "empty": (b"", "image"),
    "png of 50k x 50k": (png(50_000, 50_000, zlib.compress(bytes(50_000))), "size"),
    "png of 2^31 x 1": (png(2**31 - 1, 1), "size"),
    "png of no width": (png(0, 4), "size"),
    "png of other size": (encoded(image_of(1)[:, :3]), "size"),
    "png of short data": (png(SIDE, SIDE, zlib.compress(b"\0")), "image"),
    "png of a bomb in its data": (png(SIDE, SIDE, zlib.compress(bytes(1 << 24))[:2000]), "image"),
    "png that is not deflated": (png(SIDE, SIDE, b"\xff" * 99), "image"),
    "png of unknown colour": (png(SIDE, SIDE, zlib.compress(bytes(20)), colour=5), "image"),
    "png of strange depth": (png(SIDE, SIDE, zlib.compress(bytes(20)), depth=7), "image"),
    "png cut in its header": (GOOD[:20], "image"),
    "png cut in its data": (GOOD[:45], "image"),
    "png with a flipped byte": (GOOD[:50] + bytes([GOOD[50] ^ 255]) + GOOD[51:], "image"),
    "jpeg cut": (JPEG[: len(JPEG) // 2], "image"),
    "jpeg of a header alone": (JPEG[:4], "image"),
    "jpeg of zeros": (b"\xff\xd8\xff\xe0" + bytes(500), "image"),
    "webp cut": (WEBP[: len(WEBP) // 2], "image"),
    "webp of a header alone": (WEBP[:12], "image"),
    "eps": (EPS, "image"),
    "eps with the first bytes of a png": (b"\x89PNG\r\n\x1a\n" + EPS, "image"),
    "svg": (SVG, "image"),
    "gif": (encoded(image_of(1), "GIF"), "image"),
    "tiff": (encoded(image_of(1), "TIFF"), "image"),
    "gzip": (gzip.compress(bytes(1 << 20)), "image"),
    "html": (b"<html>404</html>", "image"),
    "pickle": (pickle.dumps(Payload()), "image"),
    "python": (b"import os; os.system('touch canary')", "image"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_a_counted_hole(folder: Path, name: str) -> None:
    data, reason = BAD_IMAGES[name]
    started = time.process_time()
    dataset = opened(folder, {"png": data})
    with nothing_but(folder):
        assert_hole(dataset, reason)
    assert time.process_time() - started < 10


ODD_IMAGES = {
    "16 bits": image_of(1).astype(np.uint16) * 257,
    "colour": image_of(1, 3),
    "black and white": image_of(1) > 99,
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_unusual_png_is_read(folder: Path, name: str) -> None:
    dataset = opened(folder, {"png": encoded(ODD_IMAGES[name])})
    assert not dataset.load([0, 1, 2]).bad


@pytest.mark.parametrize("kind", ["CMYK", "YCbCr"])
def test_an_unusual_jpeg_is_read(folder: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image_of(1, 3)).convert(kind).save(buffer, "JPEG")
    assert not opened(folder, {"jpg": buffer.getvalue()}).load([1]).bad


def test_an_animated_png_is_its_first_picture(folder: Path) -> None:
    frames = [Image.fromarray(image_of(n)) for n in (1, 2, 3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    images, _ = opened(folder, {"png": buffer.getvalue()}).read([1])
    assert np.array_equal(images[0, 0].numpy(), image_of(1))


@pytest.mark.parametrize("label", [b"", b"1e9", b"NaN", b"9" * 5_000_000, b"7;8", b"0x1", b"\0"])
def test_a_label_that_cannot_be_read_is_none_and_counted(folder: Path, label: bytes) -> None:
    dataset = opened(folder, {"png": GOOD, "cls": label})
    samples = dataset.load([0, 1, 2])
    assert not samples.bad
    assert samples.labels.tolist() == [0, -1, 2]
    assert np.array_equal(samples.images[1, 0].numpy(), image_of(1))
    assert dataset.unused.counts == {"label": 1}
    [line] = dataset.unused_lines(dataset.unused.counts, len(dataset))
    assert line.startswith("1 of 3 labels cannot be read: these samples have none (first: bad: the")


@pytest.mark.parametrize(("label", "value"), [(b"7\n", 7), (b"-1", -1), (b" 007 ", 7)])
def test_a_label_may_have_space_around_it(folder: Path, label: bytes, value: int) -> None:
    assert opened(folder, {"png": GOOD, "cls": label}).read([1])[1].tolist() == [value]


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"class": NaN}',
        b'{"class": 1.5}',
        b'{"class": "seven"}',
        b'{"class": true}',
        b'{"class": %s}' % (b"9" * 5000),
        b'{"other": 1}',
        b"7",
        b"\xff\xfe",
        b'{"class": 1}' + b" " * (1 << 20),
    ],
)
def test_bad_json_is_no_label_and_counted(folder: Path, text: bytes) -> None:
    dataset = opened(folder, {"png": GOOD, "json": text}, label_key="json:class")
    samples = dataset.load([0, 1, 2])
    assert not samples.bad
    assert samples.labels.tolist() == [-1, -1, -1]  # the others have no field json
    assert sum(dataset.unused.counts.values()) == 3
    assert dataset.unused.counts["entry"] in (2, 3)


@pytest.mark.parametrize("text", [b'{"class": 7}', b'{"class": 7.0}', b'{"class": "7"}'])
def test_a_whole_number_of_json_is_a_label(folder: Path, text: bytes) -> None:
    dataset = opened(folder, {"png": GOOD, "json": text}, label_key="json:class")
    assert dataset.load([1]).labels.tolist() == [7]


@pytest.mark.parametrize("text", ['{"class": 7, "x": [1, {}]}', '{"class": 1, "class": 7}'])
def test_a_label_may_be_an_entry_of_a_json_object(folder: Path, text: str) -> None:
    dataset = opened(folder, {"png": GOOD, "json": text.encode()}, label_key="json:class")
    assert dataset.read([1, 0])[1].tolist() == [7, -1]


@pytest.mark.parametrize(
    "suffix", ["pyd", "pkl", "pickle", "pth", "pt", "png.gz", "png.bz2", "npz"]
)
def test_other_fields_are_never_decoded(folder: Path, suffix: str) -> None:
    dataset = opened(folder, {suffix: pickle.dumps(Payload())})
    with nothing_but(folder):
        assert_hole(dataset, "field")
    # Beside an image they are not even looked at.
    fields = {"png": encoded(image_of(1)), "cls": b"1", suffix: pickle.dumps(Payload())}
    images, labels = opened(folder, fields).read([1])
    assert np.array_equal(images[0, 0].numpy(), image_of(1))
    assert labels.tolist() == [1]


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pth"])
def test_a_pickle_asked_for_by_name_is_refused(folder: Path, suffix: str) -> None:
    fields = {suffix: pickle.dumps(Payload())}
    torch_file = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, torch_file)
    for data in (fields[suffix], torch_file.getvalue()):
        dataset = opened(folder, {suffix: data}, image_keys=("png", suffix))
        with nothing_but(folder):
            assert_hole(dataset, "image")


@pytest.mark.parametrize(
    "key",
    ["../../etc/passwd", "/etc/passwd", "a\x1b[2Jb", "‮gnp", "x;rm -rf", "a\rb", "../" * 50 + "x"],
)
def test_a_key_is_text_and_never_a_path(folder: Path, key: str) -> None:
    with TarWriter(str(folder / "a.tar")) as writer:
        for written in (
            sample(0),
            {**sample(1), "__key__": key},
            {"__key__": key + "2", "png": b""},
        ):
            writer.write(written)
    data = Data(train=str(folder))
    dataset = open_dataset(data.train, data)
    with nothing_but(folder):
        loaded = dataset.load([0, 1, 2])
        assert dataset.keys([1]) == [key]
        one = dataset.bad_sample(2, 0, loaded.bad[2])
    assert list(loaded.bad) == [2]
    assert one.key is not None
    assert one.key.isprintable()
    json.dumps(one.key)
