"""The cache of remote shards: its bound, its order of eviction, its sharing, and what may fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.object_server import Fault, ObjectServer, serving

from aae_dist.data.cache.directory import cache_folder
from aae_dist.data.cache.shard_cache import Blocked, ShardCache, copy_bytes, url_digest
from aae_dist.data.format.manifest import Shard
from aae_dist.errors import ConfigError, DataError, ShardError
from aae_dist.storage import download

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

SIZE = 100_000
FOLDER_BYTES = 3 * 4096
"""The folder, its lock, and what rounding leaves."""


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with serving() as server:
        for number in range(20):
            server.files[f"/{number}.tar"] = os.urandom(SIZE)
        yield server


def shard(server: ObjectServer, number: int) -> Shard:
    return Shard(server.address, f"{number}.tar", 1, SIZE)


def opened(folder: Path, copies: float = 100, seconds: float = 5) -> ShardCache:
    return ShardCache(
        cache_folder(str(folder)), int(copies * copy_bytes(SIZE)) + FOLDER_BYTES, seconds
    )


def read(cache: ShardCache, wanted: Shard) -> bytes:
    with cache.open(wanted) as file:
        return file.read()


def fetched(cache: ShardCache, wanted: Shard, due: float) -> bool:
    reserved = cache.reserve(wanted, due)
    if not isinstance(reserved, Blocked):
        reserved()
    return reserved is not Blocked.FULL


def disk_usage(folder: Path) -> int:
    """Return what `du` says lies in the folder, in bytes."""
    command = ["du", "-s", "--block-size=1", str(folder)]
    return int(subprocess.run(command, capture_output=True, check=False).stdout.split()[0])


def test_a_shard_is_fetched_once(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path)
    for _ in range(3):
        assert read(cache, shard(server, 0)) == server.files["/0.tar"]
    assert read(opened(tmp_path), shard(server, 0)) == server.files["/0.tar"]
    assert server.requests["/0.tar"] == 1
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in cache.folder.iterdir())


def test_a_new_version_is_another_copy(server: ObjectServer, tmp_path: Path) -> None:
    read(opened(tmp_path), shard(server, 0))
    server.files["/0.tar"] = os.urandom(SIZE)
    assert read(opened(tmp_path), shard(server, 0)) == server.files["/0.tar"]


def test_what_is_needed_last_goes_first(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path, copies=3)
    uses = {url_digest(shard(server, n).url): when for n, when in enumerate((30, 10, 20, 5, 40))}
    cache.next_use = lambda digests: [uses[digest] for digest in digests]
    for number in (0, 1, 2):
        assert fetched(cache, shard(server, number), 0)
    assert fetched(cache, shard(server, 3), 5)  # for it, what is needed at 30 goes
    assert not fetched(cache, shard(server, 4), 40)  # all others are needed earlier
    server.requests.clear()
    for number in (1, 2, 3):
        read(cache, shard(server, number))
    assert not server.requests
    read(cache, shard(server, 4))  # wanted now, so what is needed at 20 goes
    read(cache, shard(server, 1))
    assert dict(server.requests) == {"/4.tar": 1}


def test_the_bound_holds_at_any_time(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path, copies=4)
    stop, seen = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            seen.append(disk_usage(cache.folder))

    def use(first: int) -> None:
        mine = opened(tmp_path, copies=4)
        for number in range(30):
            wanted = shard(server, (first + 7 * number) % 20)
            assert read(mine, wanted) == server.files[f"/{wanted.name}"]

    threads = [threading.Thread(target=use, args=(n,)) for n in range(3)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert len(seen) > 5
    assert max(seen) <= cache.max_bytes
    assert max(seen) > 3 * SIZE


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that the files of a folder are counted."""
    seen: list[str] = []
    scandir = os.scandir

    def scan(folder: Path) -> Iterator[os.DirEntry[str]]:
        seen.append(str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    return seen


def reserve_and_drop(cache: ShardCache, number: int) -> bool:
    """Put an empty copy of one block into the cache, without a download."""
    reserved = cache._reserve(
        Shard("s3://b", "", 1, 1), cache.folder / f"{number:040d}-0", 4096, due=None
    )
    if isinstance(reserved, Blocked):
        return False
    os.close(reserved.descriptor)
    reserved.part.rename(reserved.path)
    return True


def test_the_files_are_not_counted_for_each_download(
    server: ObjectServer, tmp_path: Path, scans: list[str]
) -> None:
    caches = [opened(tmp_path, copies=1e6) for _ in range(2)]
    for number in range(200):
        assert reserve_and_drop(caches[number % 2], number)
    assert len(scans) == 1, "the first time nothing is noted"
    full = opened(tmp_path, copies=200 * 8192 / copy_bytes(SIZE))
    for number in range(200, 400):
        assert reserve_and_drop(full, number)
        assert sum(path.stat().st_size for path in full.folder.iterdir()) <= full.max_bytes
    assert len(scans) < 1 + 200 / 2, "several make room at once"


@pytest.mark.parametrize("text", ["", "7", "no number of digits!", "9" * 400])
def test_a_damaged_note_is_made_anew(
    server: ObjectServer, tmp_path: Path, scans: list[str], text: str
) -> None:
    cache = opened(tmp_path, copies=2)
    read(cache, shard(server, 0))
    scans.clear()
    (cache.folder / "lock").write_text(text)
    for number in (1, 2, 3):
        read(cache, shard(server, number))
        assert disk_usage(cache.folder) <= cache.max_bytes
    assert scans


def test_a_copy_in_use_stays(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path, copies=1, seconds=0.5)
    with cache.open(shard(server, 0)) as file:
        with pytest.raises(DataError, match=r"copies that are in use fill .*max_bytes") as caught:
            cache.open(shard(server, 1))
        assert not isinstance(caught.value, ShardError), "no reason to give samples up"
        assert file.read() == server.files["/0.tar"]
    assert read(cache, shard(server, 1)) == server.files["/1.tar"]


def test_a_shard_larger_than_the_bound(server: ObjectServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"takes {SIZE} bytes .* give at least 106496"):
        opened(tmp_path, copies=0.5).open(shard(server, 0))


def test_a_part_that_goes_while_the_folder_is_counted(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path)
    copy = cache.open(shard(server, 0))  # so that counting does not remove it itself
    scandir = os.scandir

    def scan(folder: Path) -> list[os.DirEntry[str]]:
        entries = list(scandir(folder))
        for entry in entries:
            if entry.name != "lock":
                os.unlink(entry.path)
        return entries

    monkeypatch.setattr(os, "scandir", scan)
    assert not isinstance(cache.reserve(shard(server, 1), 0), Blocked)
    copy.close()


def test_two_readers_make_one_download(server: ObjectServer, tmp_path: Path) -> None:
    server.faults["/0.tar"] = [Fault("stall", 50_000)]
    got: list[bytes] = []

    def use() -> None:
        got.append(read(opened(tmp_path, seconds=3), shard(server, 0)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [server.files["/0.tar"]] * 4
    assert server.requests["/0.tar"] == 2, "the stalled one and the one that went on"


READ_FOREVER = """
import sys
from pathlib import Path
from aae_dist.data.cache.shard_cache import ShardCache
from aae_dist.data.format.manifest import Shard
cache = ShardCache(Path(sys.argv[1]), None, 60)
cache.open(Shard(sys.argv[2], "0.tar", 1, int(sys.argv[3])))
"""


def test_a_killed_download_leaves_nothing(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path, copies=1, seconds=10)
    server.faults["/0.tar"] = [Fault("stall", 50_000)]
    arguments = [str(cache.folder), server.address, str(SIZE)]
    reader = subprocess.Popen([sys.executable, "-c", READ_FOREVER, *arguments])
    give_up = time.monotonic() + 30
    while not list(cache.folder.glob("*.part")) and time.monotonic() < give_up:
        time.sleep(0.02)
    [part] = cache.folder.glob("*.part")
    assert not fetched(cache, shard(server, 1), 1), "the space of a download under way is taken"
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()
    assert read(cache, shard(server, 1)) == server.files["/1.tar"]
    assert not part.exists()
    assert read(cache, shard(server, 0)) == server.files["/0.tar"]


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault("status", 404), "missing"), (Fault("status", 403), "forbidden")]
)
def test_reasons_of_unreachable_shards_differ(
    server: ObjectServer, tmp_path: Path, fault: Fault, reason: str
) -> None:
    cache = opened(tmp_path)
    server.faults["/0.tar"] = [fault]
    with pytest.raises(ShardError, match=r"^http://.*/0\.tar: ") as caught:
        cache.open(shard(server, 0))
    assert caught.value.reason == reason
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]
    assert read(cache, shard(server, 0)) == server.files["/0.tar"]


def test_a_shard_of_another_size_or_version_than_the_manifest_says(
    server: ObjectServer, tmp_path: Path
) -> None:
    cache = opened(tmp_path)
    with pytest.raises(ShardError, match="has 100000 bytes, the manifest says 99999") as caught:
        cache.open(Shard(server.address, "0.tar", 1, SIZE - 1))
    assert caught.value.reason == "size"
    with pytest.raises(ShardError, match="has changed since it was listed") as caught:
        cache.open(Shard(server.address, "0.tar", 1, SIZE, '"of old"'))
    assert caught.value.reason == "changed"


def test_a_version_that_changes_during_the_download(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path)
    server.faults["/0.tar"] = [Fault("etag")]
    assert read(cache, shard(server, 0)) == server.files["/0.tar"]


@pytest.mark.parametrize("tags", ["weak", "time", "none"])
def test_a_server_without_strong_tags(server: ObjectServer, tmp_path: Path, tags: str) -> None:
    server.tags = tags
    assert read(opened(tmp_path), shard(server, 0)) == server.files["/0.tar"]
    assert read(opened(tmp_path), shard(server, 0)) == server.files["/0.tar"]
    assert server.requests["/0.tar"] == 1
    old, server.files["/0.tar"] = server.files["/0.tar"], os.urandom(SIZE)
    server.modified["/0.tar"] = "Wed, 02 Jul 2025 00:00:00 GMT"
    expected = old if tags == "none" else server.files["/0.tar"]
    assert read(opened(tmp_path), shard(server, 0)) == expected


@pytest.mark.parametrize("tags", ["weak", "time"])
def test_two_versions_of_one_size_are_not_mixed(
    server: ObjectServer, tmp_path: Path, tags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tags = tags
    monkeypatch.setattr(download, "RANGE_BYTES", SIZE // 4)
    monkeypatch.setattr(download, "_THREADS", 1)
    plain = download.Download._range

    def change(download: download.Download, descriptor: int, start: int, end: int) -> None:
        plain(download, descriptor, start, end)
        if start == SIZE // 4 and "/0.tar" not in server.modified:
            server.files["/0.tar"] = bytes(SIZE)
            server.modified["/0.tar"] = "Wed, 02 Jul 2025 00:00:00 GMT"

    monkeypatch.setattr(download.Download, "_range", change)
    assert read(opened(tmp_path), shard(server, 0)) == bytes(SIZE)


def test_folders_that_others_could_have_made(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "aae_dist-shards").mkdir(mode=0o755)
    with pytest.raises(DataError, match="open to others"):
        cache_folder(str(tmp_path / "open"))
    (tmp_path / "aae_dist-shards").symlink_to(tmp_path / "open")
    with pytest.raises(DataError, match="a link or a file"):
        cache_folder(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be used \(File exists\)\. Give another data"):
        cache_folder(str(tmp_path / "file"))


def test_a_folder_that_vanishes_or_is_not_writable_is_reported(
    server: ObjectServer, tmp_path: Path
) -> None:
    cache = opened(tmp_path)
    (cache.folder / "lock").unlink(missing_ok=True)
    cache.folder.rmdir()
    for use in (cache.open, partial(cache.reserve, due=0)):
        with pytest.raises(DataError, match=r"cannot keep .*0\.tar \(No such file") as caught:
            use(shard(server, 0))
        assert not isinstance(caught.value, ShardError)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_read_only_folder(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path)
    read(cache, shard(server, 0))
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        cache = opened(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(DataError, match=r"\(Read-only file system\)\. Give a data\.cache"):
            cache.open(shard(server, 0))
        with pytest.raises(DataError, match=r"no permission to write there\. Give another data"):
            cache_folder(str(tmp_path))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("years", [-40, 40])
def test_a_clock_that_jumped_changes_neither_bound_nor_bytes(
    server: ObjectServer, tmp_path: Path, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path, copies=2)
    for number in (0, 1):
        read(cache, shard(server, number))
    [one, other] = [path for path in cache.folder.iterdir() if path.name != "lock"]
    jumped = time.time() + years * 365 * 86400
    os.utime(one, (jumped, jumped))
    monkeypatch.setattr(time, "time", lambda: jumped)
    for number in (2, 0, 3, 1):
        assert read(cache, shard(server, number)) == server.files[f"/{number}.tar"]
        assert disk_usage(cache.folder) <= cache.max_bytes
    assert not other.exists() or not one.exists()


def test_a_link_in_the_folder_is_not_followed(server: ObjectServer, tmp_path: Path) -> None:
    cache = opened(tmp_path)
    read(cache, shard(server, 0))
    [copy] = [path for path in cache.folder.iterdir() if path.name != "lock"]
    (tmp_path / "other").write_bytes(b"not ours")
    copy.unlink()
    copy.symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match="cannot keep"):
        cache.open(shard(server, 0))
    assert (tmp_path / "other").read_bytes() == b"not ours"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(server: ObjectServer, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        cache = opened(tmp_path)
        (tmp_path / "others").write_bytes(bytes(250_000))
        with pytest.raises(DataError, match=r"no space left .* data\.cache\.dir") as caught:
            cache.open(shard(server, 0))
        assert not isinstance(caught.value, ShardError)
        (tmp_path / "others").unlink()
        for number in range(5):  # the bound is far off, so the disk decides what has to go
            assert read(cache, shard(server, number)) == server.files[f"/{number}.tar"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
