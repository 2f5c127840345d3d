"""Hostile and damaged archives: a shard is read whole or all its samples are counted as bad."""

import bz2
import gzip
import lzma
import os
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import image_of, sample, write_shards
from helpers.watch import nothing_but
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import BatchLoader, SampleOrder, open_dataset
from aae_dist.data.format import reader, tar as tar_module
from aae_dist.data.format.manifest import Shard
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.index.build import index_folder
from aae_dist.errors import ShardError

END = bytes(1024)


@pytest.fixture(autouse=True)
def no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("canary*"))
    assert not (tmp_path.parent / "canary").exists()


def header(
    name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def with_size(field: bytes) -> bytes:
    """Return a header whose size field holds `field`, with a right checksum."""
    block = bytearray(header())
    block[124:136] = field.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", len(records), kind) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def keys(data: bytes, name: str = "a.tar") -> list[str]:
    """Return the keys of a shard with these bytes; nothing beside it may be opened or run."""
    path = Path(name).absolute()
    path.write_bytes(data)
    started = time.process_time()
    with nothing_but(path.parent):
        found = ShardReader(Shard(str(path.parent), name, -1, len(data)), check_count=False)
    assert time.process_time() - started < 20
    return found.index.keys


LONG = record(b"path", b"x" * 300 + b".png")
REFUSED = {
    "negative size": with_size(b"\xff" * 12) + END,
    "size that is no number": with_size(b"12x") + END,
    "size in decimal": with_size(b"00000000099\0") + END,
    "size of 8 GiB": with_size(b"\x80" + bytes(6) + (8 << 30).to_bytes(5, "big")) + END,
    "size of 2^80": with_size(b"\x80\0" + b"\xff" * 10) + END,
    "size past the end": header(size=4096) + END,
    "size that jumps over the end mark": header(size=1500) + END,
    "no end mark": header(),
    "half a header": header()[:256],
    "one byte": b"x",
    "random bytes": np.random.default_rng(0).bytes(10_240),
    "trailing garbage": header() + END + b"garbage".ljust(512, b"\0"),
    "two archives joined": (header() + END) * 2,
    "two members of a name": header("a.x") + header("a.X") + END,
    "huge long name": header("L", 2 << 20, tarfile.GNUTYPE_LONGNAME) + bytes(2 << 20) + END,
    "huge pax header": pax(record(b"path", b"x" * (2 << 20))) + header() + END,
    "pax record longer than its header": pax(b"999 path=x\n") + header() + END,
    "pax record of length 0": pax(b"0 path=x\n") + header() + END,
    "pax size past the end": pax(record(b"size", b"99999999")) + header() + END,
    "pax size of 2^63": pax(record(b"size", b"9223372036854775808")) + header() + END,
    "pax size below zero": pax(record(b"size", b"-1")) + header() + END,
    "sparse member": header(kind=tarfile.GNUTYPE_SPARSE) + END,
    "pax sparse member": pax(record(b"GNU.sparse.major", b"1")) + header() + END,
    "bzip2": bz2.compress(header() + END),
    "xz": lzma.compress(header() + END),
    "gzip named tar": gzip.compress(header() + END),
    "html": b"<!doctype html><title>403</title>" * 40,
    "shell script": b"#!/bin/sh\n: > canary\n".ljust(1024, b"\n"),
    "zeroed first header": bytes(512) + header("b.png") + END,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_archive_is_refused_whole(name: str) -> None:
    with pytest.raises(ShardError) as caught:
        keys(REFUSED[name])
    assert caught.value.reason == "damaged"
    assert "a.tar: " in str(caught.value)
    assert str(caught.value).isprintable()


READ = {
    "empty archive": (END, []),
    "one empty block at the end": (header() + bytes(512), ["a"]),
    "symlink to elsewhere": (header("a.x", kind=tarfile.SYMTYPE, link="/etc/passwd") + END, []),
    "hard link": (header("a.x", kind=tarfile.LNKTYPE, link="../../canary") + END, []),
    "device": (header("a.x", kind=tarfile.CHRTYPE) + END, []),
    "fifo": (header("a.x", kind=tarfile.FIFOTYPE) + END, []),
    "folder": (header("a.x", kind=tarfile.DIRTYPE) + header("a.x/b.png") + END, ["a.x/b"]),
    "path out of the folder": (header("../canary.png") + END, ["../canary"]),
    "absolute path": (header("/tmp/canary.png") + END, ["/tmp/canary"]),
    "interleaved keys": (b"".join(map(header, ("a.x", "b.x", "a.y", "b.y"))) + END, [*"abab"]),
    "long name then pax name": (header("L", 4, b"L") + b"z.q\0".ljust(512, b"\0") + pax(LONG)
                                + header() + END, ["x" * 300]),
    "pax header twice": (pax(LONG) * 2 + header() + END, ["x" * 300]),
    "pax header for all": (pax(record(b"comment", b"x"), tarfile.XGLTYPE) + header() + END, ["a"]),
    "escape sequences in a name": (header("a\x1b[2J.png") + END, ["a\x1b[2J"]),
    "name that is no UTF-8": (header("a\udcff.png") + END, ["a\udcff"]),
    "no extension": (header("canary") + header(".hidden") + END, []),
    "meta member": (header("__bad__") + header("__x__/a.png") + header("a.__bad__") + END, ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_an_unusual_archive_is_read_without_touching_anything_else(name: str) -> None:
    data, expected = READ[name]
    assert keys(data) == expected


def test_many_members_take_neither_long_nor_much_memory() -> None:
    many = b"".join(header(f"{n}.x") for n in range(2_000)) + END
    tracemalloc.start()
    assert len(keys(many)) == 2_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_many_headers_of_one_member_are_no_recursion() -> None:
    assert keys(pax(record(b"comment", b"x")) * 5_000 + header() + END) == ["a"]


def test_a_gzip_bomb_stops_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_UNPACKED_BYTES", 1 << 20)
    bomb = gzip.compress(header(size=512 << 20)) + gzip.compress(bytes(8 << 20)) * 8
    tracemalloc.start()
    with pytest.raises(ShardError, match="when unpacked"):
        keys(bomb, "a.tar.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("claimed", [3, 5])
def test_a_shard_with_another_count_is_all_holes_and_each_is_counted(
    tmp_path: Path, claimed: int
) -> None:
    write_shards(tmp_path / "d", [4, 4])
    index_folder(tmp_path / "d")
    text = (tmp_path / "d/manifest.json").read_text()
    (tmp_path / "d/manifest.json").write_text(
        text.replace('"samples": 4', f'"samples": {claimed}', 1)
    )
    assert holes(tmp_path / "d") == {("000.tar", n): "shard count" for n in range(claimed)}


def holes(folder: Path) -> dict[tuple[str, int], str]:
    """Read one epoch; return where its holes were, after checking that no sample is missing."""
    settings = Data(train=str(folder))
    dataset = open_dataset(settings.train, settings)
    order = SampleOrder(dataset.manifest.counts, seed=1, global_batch_size=3, lanes=3)
    good, found = 0, {}
    with BatchLoader(dataset, order, slice(0, 3), num_steps=order.steps_per_epoch) as loader:
        for batch in loader:
            found |= {(one.shard, one.sample): one.reason for one in batch.bad}
            good += int(batch.valid.sum())
    assert good + len(found) == len(dataset)
    return found


def test_a_cut_at_every_block_loses_no_sample_uncounted(tmp_path: Path) -> None:
    [first, _] = write_shards(tmp_path / "d", [3, 2])
    index_folder(tmp_path / "d")
    data = first.read_bytes()
    expected = {("000.tar", n) for n in range(3)}
    end = len(data.rstrip(b"\0"))
    for cut in range(512, end, 512):
        for place in (cut - 1, cut, cut + 1):
            # As long as before, so that only reading it shows the damage.
            first.write_bytes(data[:place] + bytes(len(data) - place))
            if place < end - 512:
                found = holes(tmp_path / "d")
                # In the data of the last member, a cut spoils that one sample alone.
                assert set(found) in (expected, {("000.tar", 2)})
                reasons = {"shard damaged", "shard count", "image", "field"}
                assert set(found.values()) <= reasons


def test_a_flipped_byte_of_a_header_loses_no_sample_uncounted(tmp_path: Path) -> None:
    [first, _] = write_shards(tmp_path / "d", [2, 2])
    index_folder(tmp_path / "d")
    data = first.read_bytes()
    for place in (0, 124, 148, 156, 257, 345, 1024):
        first.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        assert holes(tmp_path / "d")


def test_a_shard_swapped_for_a_link_or_a_folder_is_all_holes(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2, 2, 2])
    index_folder(tmp_path / "d")
    paths[0].unlink()
    paths[0].symlink_to("/etc/passwd")
    paths[1].unlink()
    paths[1].mkdir()
    assert set(holes(tmp_path / "d")) == {(f"00{s}.tar", n) for s in (0, 1) for n in range(2)}


def test_a_fifo_in_the_place_of_a_shard_does_not_hang(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2, 2])
    index_folder(tmp_path / "d")
    paths[0].unlink()
    os.mkfifo(paths[0])
    assert set(holes(tmp_path / "d")) == {("000.tar", 0), ("000.tar", 1)}


def test_a_truncated_image_in_a_whole_archive_is_one_hole(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with TarWriter(str(tmp_path / "d/a.tar")) as writer:
        for number in range(5):
            fields = sample(number)
            cut = {"png": fields["png"][:-20]} if number == 3 else {}
            writer.write({**fields, **cut})
    assert holes(tmp_path / "d") == {("a.tar", 3): "image"}
    assert image_of(3).shape


def test_more_than_an_index_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "MAX_SAMPLES", 3)
    monkeypatch.setattr(tar_module, "MAX_MEMBERS", 4)
    samples = [header(f"{n}.png") for n in range(4)]
    fields = [header(f"a.{n}") for n in range(5)]
    assert len(keys(b"".join(samples[:3]) + END)) == 3
    assert keys(b"".join(fields[:4]) + END) == ["a"]
    with pytest.raises(ShardError, match=r"a\.tar: more than 3 samples; write smaller shards"):
        keys(b"".join(samples) + END)
    with pytest.raises(ShardError, match=r"sample 'a' has more than 4 members"):
        keys(b"".join(fields) + END)


def test_time_and_memory_of_empty_members_grow_with_their_number() -> None:
    def seconds(count: int) -> float:
        data = b"".join(header(f"{n}.cls") for n in range(count)) + END
        found = []
        for _ in range(3):
            started = time.process_time()
            assert len(tar_module.index_tar(data)) == count
            found.append(time.process_time() - started)
        return min(found)

    # 8 times the members: 64 times the time if anything were quadratic.
    assert seconds(8_000) < 24 * seconds(1_000)


def test_a_nul_in_a_pax_path_stays_a_part_of_the_key() -> None:
    data = pax(record(b"path", b"../x\0y.png")) + header() + END
    assert keys(data) == ["../x\0y"]


def test_a_size_in_a_pax_header_overrides_the_other_one() -> None:
    body, rest = b"x" * 700, bytes(1024 - 700)
    data = pax(record(b"size", b"700")) + header("a.bin", 0) + body + rest + header("b.bin") + END
    Path("a.tar").write_bytes(data)
    shard = ShardReader(Shard(str(Path.cwd()), "a.tar", 2, len(data)))
    assert shard.index.keys == ["a", "b"]
    assert shard.fields(0) == {"bin": body}
    with tarfile.open("a.tar") as archive:
        assert [member.size for member in archive] == [700, 0]
