"""Members found all at once are those found one by one, or none are: also in damaged archives."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import write_shards
from hypothesis import given, strategies as st

from aae_dist.data.format.tar import DamagedTarError, plain_members, read_members

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60),
    st.sampled_from(["a/", "a/b.png", "x" * 99, "x" * 100, "x" * 101, "d/" * 60 + "f.png"]),
)
KINDS = st.sampled_from(
    [*[tarfile.REGTYPE] * 12, tarfile.DIRTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE]
)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1600), KINDS, st.sampled_from([0, 1.5])))
FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


def archive(members: list[tuple[str, bytes, bytes, float]], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data, member_kind, mtime in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = member_kind, mtime
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def one_by_one(data: bytes) -> list[tuple[str, int, int]] | None:
    try:
        return [tuple(member) for member in read_members(data)]
    except DamagedTarError:
        return None


def check(data: bytes) -> bool:
    """Assert that both ways agree; return whether the fast one knew."""
    plain = plain_members(data)
    if plain is not None:
        assert list(plain) == one_by_one(data)
    return plain is not None


@given(MEMBERS, st.sampled_from(FORMATS))
def test_any_archive(members: list[tuple[str, bytes, bytes, float]], kind: int) -> None:
    try:
        data = archive(members, kind)
    except ValueError:  # a name too long for ustar
        return
    check(data)


@pytest.mark.parametrize("kind", ["webdataset", "gnu", "ustar", "tarfile"])
def test_what_common_tools_write_is_plain(tmp_path: Path, kind: str) -> None:
    [shard] = write_shards(tmp_path, [5])
    if kind in ("gnu", "ustar"):
        (tmp_path / "d" / "e").mkdir(parents=True)
        for name in ("1.png", "1.cls", "e/2.png"):
            (tmp_path / "d" / name).write_bytes(bytes(700))
        how = [f"--format={kind}", "--owner=0", "--group=0"]
        command = ["tar", "-C", str(tmp_path), *how, "-cf", str(shard), "d"]
        subprocess.run(command, check=True)
    if kind == "tarfile":
        with tarfile.open(shard, "w") as tar:
            tar.add(__file__, "a/b.py", filter=lambda info: info.replace(uid=0, gid=0, deep=False))
    assert check(shard.read_bytes())


@pytest.mark.parametrize("kind", FORMATS)
def test_archives_with_any_bytes_changed(kind: int) -> None:
    data = archive([(f"{n}.png", bytes(n), tarfile.REGTYPE, n / 2) for n in range(4)], kind)
    random = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(data)
        place = int(random.integers(12 * 512))
        changed[place] = int(random.choice([0, 10, 32, 48, 49, 53, 57, 61, 120, 255]))
        header = changed[place // 512 * 512 :][:512]
        if random.random() < 0.8 and header[257:262] == b"ustar":  # as if it were meant so
            header[148:156] = b" " * 8
            begin = place // 512 * 512 + 148
            changed[begin : begin + 8] = b"%06o\0 " % sum(header)
        check(bytes(changed))


def test_a_member_without_a_name_is_left_out_by_both() -> None:
    data = bytearray(archive([("a.png", b"x", tarfile.REGTYPE, 0)] * 2, tarfile.USTAR_FORMAT))
    data[:5] = bytes(5)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert not check(bytes(data))
    assert one_by_one(bytes(data)) == [("a.png", 1536, 1)]


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1024, 10240])
def test_empty_and_short_archives(length: int) -> None:
    assert not check(bytes(length))


def test_an_archive_in_an_archive_is_a_file() -> None:
    inner = archive([("b.png", bytes(600), tarfile.REGTYPE, 0)], tarfile.USTAR_FORMAT)
    outer = archive([("a.tar", inner, tarfile.REGTYPE, 0)], tarfile.USTAR_FORMAT)
    assert not check(outer)  # two headers that do not follow one another
    assert one_by_one(outer) == [("a.tar", 512, len(inner))]


def test_cuts_are_not_plain() -> None:
    data = archive([(f"{n}.png", bytes(700), tarfile.REGTYPE, 0) for n in range(3)], FORMATS[0])
    for end in range(0, len(data) - 1024, 64):
        check(data[:end])
    assert plain_members(data[: data.rindex(b"2.png") + 512]) is None


@pytest.mark.parametrize("value", [b"1.5", b"1", b"", b"1\n12 path=x", b"x=y"])
def test_times_in_pax_headers(value: bytes) -> None:
    body = b" mtime=" + value + b"\n"
    for length in range(100):
        record = b"%02d" % length + body
        head = tarfile.TarInfo("h")
        head.type, head.size = tarfile.XHDTYPE, len(record)
        file = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
        data = head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + file + bytes(1024)
        assert check(data) == (length == len(record))
