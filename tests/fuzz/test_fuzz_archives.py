"""Shards: tar and tar.gz, mutated and made up, counted and read as a run does."""

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fuzzing import MIB, bounded, fuzz, mutated
from helpers.shards import encoded, image_of, sample
from hypothesis import strategies as st
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.data.format.manifest import Shard
from aae_dist.data.format.reader import ShardReader, count_members
from aae_dist.data.format.tar import index_tar

MOST_BYTES = 96 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("shards")


def read(folder: Path, name: str, data: bytes) -> None:
    """Count a shard, read each field of each sample, and decode its samples."""
    path = folder / name
    path.write_bytes(data)
    shard = Shard(str(folder), name, 0, len(data))
    with bounded(name.partition(".")[2], data, MOST_BYTES):
        count_members(shard, None)
    with bounded(name.partition(".")[2], data, MOST_BYTES):
        reader = ShardReader(shard, check_count=False)
        for number in range(min(len(reader), 50)):
            reader.fields(number)
    with bounded(name.partition(".")[2], data, MOST_BYTES):
        settings = Data.model_validate({"train": str(path), "image_size": 4, "channels": 1})
        dataset = open_dataset(str(path), settings)
        samples = dataset.load(list(range(min(dataset.manifest.num_samples, 50))))
        for row, error in samples.bad.items():
            assert "\x1b" not in dataset.bad_sample(row, row, error).detail
    path.unlink()


def _webdataset() -> bytes:
    file = io.BytesIO()
    with TarWriter(file) as writer:
        for number in range(3):
            writer.write(sample(number))
    return file.getvalue()


def _tar(kind: int) -> bytes:
    """Return a tar of one of tarfile's formats, with long names, links and a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, size in (("a/0.png", 0), ("a/0.cls", 1), ("b/" * 60 + "c.png", 0)):
            entry = tarfile.TarInfo(name)
            data = b"3" if size else encoded(image_of(1))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for place, (what, target) in enumerate(
            ((tarfile.LNKTYPE, "a/0.png"), (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.DIRTYPE, ""))
        ):
            entry = tarfile.TarInfo(f"link{place}.png")
            entry.type, entry.linkname = what, target
            tar.addfile(entry)
    return file.getvalue()


TARS = [_webdataset(), *map(_tar, (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))]
PACKED = [gzip.compress(data, 1) for data in TARS]


@fuzz(share=0.5, data=mutated(TARS, PACKED))
def test_tars_that_were_changed(folder: Path, data: bytes) -> None:
    read(folder, "a.tar", data)


@fuzz(share=0.5, data=mutated(PACKED, TARS))
def test_compressed_tars_that_were_changed(folder: Path, data: bytes) -> None:
    read(folder, "a.tar.gz", data)


@fuzz(share=0.5, data=mutated(TARS).map(lambda data: gzip.compress(data, 1)))
def test_changed_tars_that_were_compressed(folder: Path, data: bytes) -> None:
    read(folder, "a.tar.gz", data)


_NAMES = st.one_of(
    st.sampled_from(
        (b"0.png", b"0.cls", b"1.png", b"", b".png", b"a/../0.png", b"/x.png", b"./0.p")
    ),
    st.binary(max_size=30),
    st.sampled_from((b"x" * 100, b"a/" * 49 + b"b.c", b"\x1b[31m.png", b"0.\x1b[2J", b"\xff.png")),
)
_SIZES = st.one_of(
    st.integers(0, 600).map(lambda size: b"%011o\0" % size),
    st.sampled_from(
        (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b" 12 \0", b"")
    ),
)
_TYPES = st.sampled_from((*b"0001256", *b"xxgLKSAVX7", 0, 255))


def header(name: bytes, size: bytes, kind: int, link: bytes, magic: bytes, prefix: bytes) -> bytes:
    """Return a header block with a checksum that fits."""
    block = bytearray(512)
    for place, field, width in (
        *((0, name, 100), (100, b"0000644\0", 8), (124, size, 12), (148, b" " * 8, 8)),
        *((157, link, 100), (257, magic, 8), (345, prefix, 155)),
    ):
        block[place : place + min(width, len(field))] = field[:width]
    block[156] = kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        (
            *(b"19 path=x/1.png\n\n\n", b"20 size=99999999999\n", b"9999999 path=x\n", b"5 a=\n"),
            *(b"26 GNU.sparse.major=1\n", b"30 linkpath=0.png\n", b"12 path=\x1b[2\n", b"0 =\n"),
            encoded(image_of(1)),
        )
    ),
)
_MEMBERS = st.tuples(
    *(_NAMES, _SIZES, _TYPES, st.sampled_from((b"", b"0.png", b"\xff" * 100))),
    *(st.sampled_from((b"ustar\x0000", b"ustar  \0", b"", b"\xff")), st.sampled_from((b"", b"p"))),
    *(_BODIES, st.booleans()),
)


@fuzz(members=st.lists(_MEMBERS, max_size=6), end=st.sampled_from((0, 512, 1024, 700)))
def test_tars_of_odd_members(folder: Path, members: Any, end: int) -> None:
    data = b""
    for name, size, kind, link, magic, prefix, body, is_true in members:
        told = b"%011o\0" % len(body) if is_true else size
        data += header(name, told, kind, link, magic, prefix) + body + bytes(-len(body) % 512)
    read(folder, "a.tar", data + bytes(end))
    with bounded("tar", data, MOST_BYTES):
        index_tar(memoryview(data + bytes(end)).tobytes())


@pytest.mark.parametrize("number", range(len(TARS)))
@pytest.mark.parametrize("cut", [0, 1, 511, 512, 600, 1024, 2048, -1, -600])
def test_archives_that_were_cut(folder: Path, number: int, cut: int) -> None:
    read(folder, "a.tar", TARS[number][:cut])
    read(folder, "a.tar.gz", PACKED[number][:cut])
