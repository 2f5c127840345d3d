import gzip
import io
import os
import shutil
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.shards import write_shards
from webdataset import TarWriter, tariterators

from aae_dist.config.sections.run import Cache
from aae_dist.data.format import reader
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.data.format.reader import OpenShards, ShardReader
from aae_dist.data.index.build import open_manifest
from aae_dist.data.memory import Holders
from aae_dist.errors import DataError, SampleError, ShardError
from aae_dist.storage import open_storage

Samples = list[tuple[str, dict[str, bytes]]]


def ours(path: Path) -> Samples:
    shard = Shard(str(path.parent), path.name, -1, path.stat().st_size)
    opened = ShardReader(shard, check_count=False)
    return [(opened.index.keys[n], opened.fields(n)) for n in range(len(opened))]


def stock(path: Path) -> Samples:
    with path.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        return [
            (s["__key__"], {name: data for name, data in s.items() if not name.startswith("__")})
            for s in tariterators.group_by_keys(files)
        ]


NAMES = [
    "a.png",
    "a.cls",
    "b.PNG",
    "b.Seg.Png",
    "v1.0/c.png",
    "v1.0/c.cls",
    "no_extension",
    ".hidden",
    "d/.hidden.png",
    "__meta__",
    "__info__/x.png",
    "__almost.png",
    "a.png",
    "ünï/e.txt",
    "deep/" + "x" * 120 + ".png",
    "deep/" + "y/" * 60 + "f.png",
    "x" * 300 + ".json",
    "new\nline.txt",
    "empty.cls",
]


def add_members(tar: tarfile.TarFile) -> None:
    for number, name in enumerate(NAMES):
        info = tarfile.TarInfo(name)
        data = b"" if name.startswith("empty") else bytes([number]) * (number * 100)
        info.size = len(data)
        info.pax_headers = {"comment": "x"} if number % 3 == 0 else {}
        tar.addfile(info, io.BytesIO(data))
        if number == 5:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                other = tarfile.TarInfo(f"other{ord(kind)}.png")
                other.type, other.linkname = kind, "a.png"
                tar.addfile(other)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_equals_webdataset_on_what_tarfile_writes(tmp_path: Path, kind: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tar.gz" else "w", format=kind) as tar:
        add_members(tar)
    samples = ours(path)
    # A hard link is the file that it links to; webdataset skips it.
    [link] = [fields for key, fields in samples if key == "other49"]
    assert link == {"png": samples[0][1]["png"]}
    assert [sample for sample in samples if sample[0] != "other49"] == stock(path)
    assert len(samples) > 10


@pytest.mark.parametrize("kind", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_equals_webdataset_on_what_gnu_tar_writes(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    for name in ("a.png", "a.cls", "v1.0/b.png", "sub/dir.x/c.JSON", "z" * 60 + "/" + "d" * 50):
        file = source / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name * 50)
    path = tmp_path / "a.tar"
    command = ["tar", "-c", f"--format={kind}", "--sort=name", "-f", str(path), "-C", str(source)]
    names = [p.relative_to(source).as_posix() for p in sorted(source.rglob("*.txt"))]
    if kind == "v7":
        names = [name for name in names if len(name) < 100]
    subprocess.run([*command, *names], check=True)
    assert ours(path) == stock(path)
    assert len(ours(path)) == len(names) - 1, "a.cls and a.png are one sample"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_equals_webdataset_on_what_its_own_writer_writes(tmp_path: Path, suffix: str) -> None:
    [path] = write_shards(tmp_path, [40], suffix)
    assert ours(path) == stock(path)


def test_a_file_of_8_gib_and_more_has_its_size_in_binary(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.bin")
    info.size = 9 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=f"a member ends at byte {(9 << 30) + 512}"):
        ours(tmp_path / "a.tar")


def shard_bytes(tmp_path: Path, count: int = 4) -> bytes:
    [path] = write_shards(tmp_path / "whole", [count])
    return path.read_bytes()


def end_of_members(data: bytes) -> int:
    """Return where the end-of-archive mark begins."""
    return len(data.rstrip(b"\0")) // 512 * 512 + 512


def test_a_cut_anywhere_before_the_end_mark_is_detected(tmp_path: Path) -> None:
    data = shard_bytes(tmp_path)
    path = tmp_path / "cut.tar"
    for block in range(512, end_of_members(data) + 1, 512):
        for cut in (block - 1, block, block + 1):
            path.write_bytes(data[:cut])
            with pytest.raises(DataError, match=r"cut\.tar: cut off at byte"):
                ours(path)


def test_each_damaged_header_is_detected(tmp_path: Path) -> None:
    data = shard_bytes(tmp_path)
    path = tmp_path / "bad.tar"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offsets = [member.offset for member in tar.getmembers()]
    for offset in offsets:
        for place in (0, 130, 150, 156, 300):
            damaged = bytearray(data)
            damaged[offset + place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="wrong checksum"):
                ours(path)
        zeroed = bytearray(data)
        zeroed[offset : offset + 512] = bytes(512)
        path.write_bytes(zeroed)
        with pytest.raises(DataError, match="a header was zeroed, or archives were joined"):
            ours(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>" * 100, "not a tar file|wrong checksum"),
        (b"\x1f\x8b" + b"x" * 2000, "wrong checksum|not a tar file"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        ours(tmp_path / "a.tar")


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(shard_bytes(tmp_path))
    for damaged in (data[:-9], data[: len(data) // 2], b"x" + data, data[:50] + b"zz" + data[52:]):
        (tmp_path / "a.tar.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="damaged or not gzip"):
            ours(tmp_path / "a.tar.gz")


def test_two_members_of_one_name_in_a_sample_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.PNG"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="two members 'png'"):
        ours(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "records", [b"99 path=x\n", b"9 path", b"x path=y\n", b"11 size=-1\n", b"12 size=1e9\n"]
)
def test_a_broken_pax_header_is_refused(tmp_path: Path, records: bytes) -> None:
    info = tarfile.TarInfo("h")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    data = info.tobuf() + records.ljust(512, b"\0") + tarfile.TarInfo("a.x").tobuf() + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="pax header at byte"):
        ours(tmp_path / "a.tar")


def test_count_or_size_other_than_the_manifests_is_refused(tmp_path: Path) -> None:
    [path] = write_shards(tmp_path, [4])
    size = path.stat().st_size
    with pytest.raises(DataError, match="has 4 samples, the manifest says 5"):
        ShardReader(Shard(str(tmp_path), path.name, 5, size))
    with pytest.raises(DataError, match=f"has {size} bytes, the manifest says 77"):
        ShardReader(Shard(str(tmp_path), path.name, 4, 77))
    path.unlink()
    with pytest.raises(DataError, match="cannot read the shard"):
        ShardReader(Shard(str(tmp_path), path.name, 4, size))


def test_shards_are_closed_and_opened_again_as_needed(tmp_path: Path) -> None:
    write_shards(tmp_path, [2] * 6, ".tar.gz")
    shards = OpenShards(open_manifest(str(tmp_path)))
    shards._max_open = 2
    for _ in range(2):
        for number in range(6):
            assert shards.get(number).index.keys == [f"{2 * number + n:06d}" for n in range(2)]
            assert len(shards.get(number).fields(1)) == 2
    held = [reader.unpacked_bytes > 0 for reader in shards._readers.values()]
    assert held == [False] * 4 + [True] * 2


def test_a_file_cut_short_while_it_is_open_ends_no_process(tmp_path: Path) -> None:
    [path] = write_shards(tmp_path, [4])
    shard = ShardReader(open_manifest(str(tmp_path)).shards[0])
    whole = [shard.fields(n) for n in range(4)]
    places = [shard.index.fields(n)["png"] for n in range(4)]
    os.truncate(path, places[2][0] + 1)  # a mapping of lost pages ends the process
    assert shard.read([places[1]])[0] == whole[1]["png"]
    with pytest.raises(SampleError, match=r"000\.tar: ends at byte .*rename them") as caught:
        shard.read([places[2]])[0]
    assert caught.value.reason == "size"
    with pytest.raises(ShardError, match="has .* bytes|cut off"):
        shard.open()


def test_fields_near_and_far_are_read_equally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"cls": b"3", "json": bytes(reader._READ_TOGETHER_BYTES), "png": b"image", "txt": b""}
    with TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", **fields})
    shard = ShardReader(Shard(str(tmp_path), "a.tar", 1, (tmp_path / "a.tar").stat().st_size))
    places = shard.index.fields(0)
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args) or pread(*args))
    for names, count in [(["png", "txt"], 1), (["cls", "png"], 2), (["cls"], 1), (list(fields), 4)]:
        reads.clear()
        for order in (names, names[::-1]):
            assert shard.read([places[name] for name in order]) == [fields[name] for name in order]
        assert len(reads) == 2 * count


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_is_written_again_is_indexed_again(tmp_path: Path, in_place: bool) -> None:
    [path] = write_shards(tmp_path / "a", [4])
    _, other = write_shards(tmp_path / "b", [7, 4])
    assert path.stat().st_size == other.stat().st_size
    shards = OpenShards(open_manifest(str(tmp_path / "a")))
    assert shards.get(0).index.keys[0] == "000000"
    shards.release_all()
    if in_place:
        assert shards.get(0).index.keys[0] == "000000"  # open again
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(0, 0))
    else:
        os.replace(other, path)
    assert shards.get(0).index.keys == [f"{7 + n:06d}" for n in range(4)]


def test_a_shard_that_took_long_to_fail_is_left_alone_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = write_shards(tmp_path, [2])
    shards, now, tries = OpenShards(open_manifest(str(tmp_path))), [0.0], []
    monkeypatch.setattr(reader.time, "monotonic", lambda: now[0])

    def waits(*arguments: object) -> object:
        tries.append(now[0])
        now[0] += 240
        raise ShardError("nobody answers", reason="unreachable")

    monkeypatch.setattr(reader, "open_shard", waits)
    for _ in range(400):
        with pytest.raises(ShardError, match="nobody answers"):
            shards.get(0)
        now[0] += 60
    assert tries[1] >= 240 * 11
    assert 240 * len(tries) < now[0] / 10


def test_unpacking_takes_no_more_memory_than_the_contents(tmp_path: Path) -> None:
    write_shards(tmp_path, [40], ".tar.gz")
    [shard] = open_manifest(str(tmp_path)).shards
    tracemalloc.start()
    opened = ShardReader(shard)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.unpacked_bytes < most < opened.unpacked_bytes + (8 << 20)


def test_a_remote_shard_is_downloaded_once(
    s3: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = open_storage(s3())
    for path in write_shards(tmp_path / "data", [3, 2]):
        bucket.upload(path.name, path)
    manifest = open_manifest(bucket.uri, Cache())
    files = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*/*-*")}
    assert len(files) == 2
    readers = [ShardReader(shard) for shard in manifest.shards]
    assert [len(reader) for reader in readers] == [3, 2]
    assert all(path.stat().st_ino == before for path, before in files.items())
    assert os.stat(next(iter(files)).parent).st_mode & 0o077 == 0
    shutil.rmtree(tmp_path / "cache")
    bucket.delete("000.tar")
    with pytest.raises(DataError, match=r"s3://.*/000\.tar: no such shard"):
        ShardReader(manifest.shards[0])


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    [path] = write_shards(tmp_path, [0])
    assert ours(path) == []
    assert Manifest((Shard(str(tmp_path), path.name, 0, 10240),)).num_samples == 0


def write_compressed(folder: Path, count: int, num_bytes: int) -> None:
    """Write `count` shards of one sample each, of `num_bytes` when unpacked and small on disk."""
    folder.mkdir()
    for number in range(count):
        with tarfile.open(folder / f"{number}.tar.gz", "w:gz", compresslevel=1) as tar:
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = num_bytes
            tar.addfile(info, io.BytesIO(bytes(num_bytes)))


def test_compressed_shards_are_counted_without_holding_them(tmp_path: Path) -> None:
    write_compressed(tmp_path / "a", 4, 32 << 20)
    tracemalloc.start()
    manifest = open_manifest(str(tmp_path / "a"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.counts.tolist() == [1, 1, 1, 1]
    assert most < 24 << 20


def test_one_budget_of_unpacked_bytes_serves_all_data_sets_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_MAX_UNPACKED_BYTES", 20 << 20)
    add = Holders.add

    def add_late(self: Holders, holder: ShardReader, num_bytes: int) -> None:
        time.sleep(0.05)  # another thread may unpack meanwhile what fits only without this shard
        add(self, holder, num_bytes)

    monkeypatch.setattr(Holders, "add", add_late)
    write_compressed(tmp_path / "a", 4, 8 << 20)
    write_compressed(tmp_path / "b", 4, 8 << 20)
    opened = [OpenShards(open_manifest(str(tmp_path / name))) for name in "ab"]
    most = 0

    def read(task: int) -> None:
        nonlocal most
        fields = opened[task % 2].get(task // 2 % 4).fields(0)
        assert [len(data) for data in fields.values()] == [8 << 20]
        most = max(most, reader.UNPACKED.num_bytes)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(8)))
    assert 0 < most <= 20 << 20


def test_a_shard_that_is_released_while_it_is_read_is_opened_again(tmp_path: Path) -> None:
    write_compressed(tmp_path / "a", 1, 1 << 20)
    opened = ShardReader(open_manifest(str(tmp_path / "a")).shards[0])
    reader.UNPACKED.shrink(0)
    assert opened.unpacked_bytes == 0
    assert len(opened.fields(0)["bin"]) == 1 << 20


def test_four_bombs_at_once_cost_one_budget_and_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An eighth of the real bound, and of 768 MiB and 2 s.
    monkeypatch.setattr(reader, "_SMALL_UNPACKED_BYTES", reader._SMALL_UNPACKED_BYTES >> 3)
    part = gzip.compress(bytes(4 << 20))
    for number in range(4):
        (tmp_path / f"{number}.tar.gz").write_bytes(part * 10)
    shards = [Shard(str(tmp_path), f"{n}.tar.gz", 1, 10 * len(part)) for n in range(4)]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of this process's memory
    before, began = peak_bytes(), time.process_time()

    def opened(shard: Shard) -> str:
        with pytest.raises(ShardError, match="unpacks to more than 200 times its") as caught:
            ShardReader(shard)
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(opened, shards))) == 4
    with pytest.raises(ShardError, match="unpacks to more than 200 times its"):
        reader.count_members(shards[0], None)
    assert peak_bytes() - before < 96 << 20
    assert (time.process_time() - began) / 5 < 0.25


def peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10
