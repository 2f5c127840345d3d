"""Copies of remote shards on this node: within a hard bound, shared by the node's ranks.

The folder is the whole state, so a process may die at any point:

- NAME is a complete copy; whoever reads it holds a shared lock on it;
- NAME.part is on its way; its writer holds an exclusive lock on it, and it has its final size from
  the start, so that what is on disk is what is promised;
- `lock` is held while files come and go.

The kernel frees the locks of the dead: a part without a lock is rubbish, a copy without is free.
"""

import contextlib
import errno
import fcntl
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from aae_dist.config.sections.data import Cache, Data
from aae_dist.data.cache.directory import (
    BLOCK,
    cache_folder,
    create_partial,
    disk_bytes,
    open_pinned,
    rounded,
    try_remove,
)
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.errors import ConfigError, DataError, LaunchError, ShardError, StorageError
from aae_dist.storage import Entry, is_remote, open_storage
from aae_dist.storage.ranges import Download

PART = ".part"
_POLL_SECONDS = 0.02
URL_DIGITS = 40
_MAX_CHANGES = 3

NextUse = Callable[[Sequence[str]], Sequence[float]]
"""From the `url_digest`s of copies to when each is wanted next; infinity for never."""
_AGAIN = "write the manifest again with: aae-dist data index PATTERN"


@dataclass(frozen=True)
class _Copy:
    path: Path
    bytes: int
    next_use: float
    used_at: float


class ShardCache:
    """Copies of remote shards; all processes of the node may have one on the same folder.

    Args:
        folder: Where the copies lie; made if need be, closed to other users.
        max_bytes: Bound on everything in the folder, at any time. None takes half of what the
            disk has free, what is cached already counted as free.
        seconds: How long a shard may take to arrive, with all retries.
    """

    def __init__(self, folder: Path, max_bytes: int | None, seconds: float) -> None:
        self.folder, self._seconds = folder, seconds
        self.next_use: NextUse = lambda digests: [math.inf] * len(digests)
        self._versions: dict[str, Entry] = {}
        self.max_bytes = max_bytes if max_bytes is not None else self._half_of_the_disk()

    def open(self, shard: Shard) -> BinaryIO:
        """Return the shard's copy, open for reading; it stays in the cache until it is closed.

        The lock that keeps it is the file's: a mapping of it or a duplicate of its descriptor
        keeps the copy just as well.

        Raises:
            ShardError: The shard is absent, cannot be had in time, or is not what the manifest
                says.
            DataError: The cache cannot take it: the disk is full, or copies in use fill the bound.
        """
        with disk_errors(self.folder, shard):
            return self._opened(shard)

    def _opened(self, shard: Shard) -> BinaryIO:
        deadline = time.monotonic() + self._seconds
        changes = 0
        while True:
            version = self._version(shard)
            path = self.folder / _name(shard.url, version)
            if file := open_pinned(path):
                return file
            part = self._reserve(shard, path, version.size, due=None)
            if isinstance(part, int):
                try:
                    self._download(shard, version, part, path)
                except ShardError as error:
                    changes += 1
                    if error.reason != "changed" or shard.etag or changes == _MAX_CHANGES:
                        raise
                    del self._versions[shard.url]
                continue
            if time.monotonic() > deadline:
                raise eviction_timeout(self.folder, shard, part, self.max_bytes, self._seconds)
            time.sleep(_POLL_SECONDS)

    def prefetch(self, shard: Shard, due: float) -> Callable[[], None] | None:
        """Take room for the shard, at the cost of copies that are wanted later than `due`.

        Returns:
            What fetches it, to be called once; None when it has no room for now.

        Raises:
            DataError: As `open` does; so does what is returned.
        """
        with disk_errors(self.folder, shard):
            version = self._version(shard)
            path = self.folder / _name(shard.url, version)
            part = "done" if path.exists() else self._reserve(shard, path, version.size, due)
        if isinstance(part, int):
            return partial(self._download, shard, version, part, path)
        return None if part == "full" else _nothing

    def _version(self, shard: Shard) -> Entry:
        """Return size and tag of the version that is wanted; the manifest's if it says."""
        if shard.etag is not None:
            return Entry(shard.name, shard.bytes, shard.etag)
        if shard.url not in self._versions:
            with storage_errors(shard):
                found = open_storage(shard.folder, self._seconds).stat(shard.name)
                if found is None:
                    raise FileNotFoundError
            check_size(shard, found.size)
            self._versions[shard.url] = found
        return self._versions[shard.url]

    def _reserve(self, shard: Shard, path: Path, size: int, due: float | None) -> int | str:
        """Return the descriptor of a new part that has its disk space, or why there is none.

        Returns:
            A descriptor; "busy" when someone else is fetching this shard; "full" when no copies
            can go; "done" when the shard is here by now.
        """
        part = path.with_name(path.name + PART)
        with self._locked():
            if path.exists():
                return "done"
            # A part that has no lock was left by a process that died.
            if not try_remove(part):
                return "busy"
            wanted = copy_bytes(size)
            if wanted > self.max_bytes:
                raise ConfigError(
                    f"{shard.url} takes {size} bytes and data.cache.max_bytes is "
                    f"{self.max_bytes}; give at least {wanted}, or write smaller shards."
                )
            if not self._make_room(wanted, due):
                return "full"
            while True:
                try:
                    return create_partial(part, size)
                except OSError as error:
                    # The disk has less room than the bound allows: others use it too.
                    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    if not (full and self._evict(size, due)):
                        raise disk_error(self.folder, shard, size, error) from error

    def _make_room(self, wanted: int, due: float | None) -> bool:
        _, used = self._contents()
        missing = used + wanted - self.max_bytes
        return missing <= 0 or self._evict(missing, due)

    def _evict(self, missing: int, due: float | None) -> bool:
        """Remove copies that are wanted later than `due`; return whether `missing` bytes went."""
        copies, _ = self._contents()
        # What is needed furthest in the future goes first (Belady), then what was used longest ago.
        copies.sort(key=lambda copy: (-copy.next_use, copy.used_at))
        later = [copy for copy in copies if due is None or copy.next_use > due]
        if sum(copy.bytes for copy in later) < missing:
            return False
        for copy in later:
            if missing <= 0:
                break
            if try_remove(copy.path):
                missing -= copy.bytes
        return missing <= 0

    def _contents(self) -> tuple[list[_Copy], int]:
        """Return the complete copies, and the bytes of all that lies in the folder."""
        copies, used = [], disk_bytes(self.folder.stat())
        for entry in list(os.scandir(self.folder)):
            path = Path(entry.path)
            if entry.name.endswith(PART) and try_remove(path):
                continue
            try:
                stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # a download that failed took its part away just now
                continue
            used += disk_bytes(stat)
            if not entry.name.endswith(PART) and entry.name != "lock":
                copies.append(_Copy(path, disk_bytes(stat), 0.0, stat.st_mtime))
        uses = self.next_use([copy.path.name[:URL_DIGITS] for copy in copies])
        pairs = zip(copies, uses, strict=True)
        return [_Copy(c.path, c.bytes, use, c.used_at) for c, use in pairs], used

    def _download(self, shard: Shard, version: Entry, descriptor: int, path: Path) -> None:
        part, complete = path.with_name(path.name + PART), False
        try:
            with storage_errors(shard):
                storage = open_storage(shard.folder, self._seconds)
                deadline = time.monotonic() + self._seconds
                Download(storage, version, deadline).write_to(descriptor)
                # A crash of the machine must not leave a complete name on bytes that are not.
                os.fdatasync(descriptor)
            with self._locked():
                part.replace(path)
            complete = True
        except OSError as error:
            raise disk_error(self.folder, shard, version.size, error) from error
        finally:
            # Our lock is on it until here, so nobody else has taken the name.
            if not complete:
                part.unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.folder / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _half_of_the_disk(self) -> int:
        disk = os.statvfs(self.folder)
        with self._locked():
            _, used = self._contents()
        return (disk.f_bavail * disk.f_frsize + used) // 2


def _nothing() -> None:
    """Fetch a shard that is here, or that somebody else is fetching."""


def url_digest(url: str) -> str:
    """Return what the names of all copies of this address begin with."""
    return sha256(url.encode()).hexdigest()[:URL_DIGITS]


def copy_bytes(size: int) -> int:
    """Return what a shard of `size` bytes takes of the bound."""
    return rounded(size) + BLOCK


def _name(url: str, version: Entry) -> str:
    # A server without tags has the time to tell versions apart, or nothing.
    which = version.etag if version.etag is not None else version.modified
    tag = sha256(f"{which}\n{version.size}".encode()).hexdigest()
    return f"{url_digest(url)}-{tag[:24]}"


def disk_error(folder: Path, shard: Shard, size: int, error: OSError) -> DataError:
    """Return the error for a disk that refused `size` bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = os.statvfs(folder)
        return DataError(
            f"{folder}: no space left on the device for {shard.url} ({size} bytes, "
            f"{disk.f_bavail * disk.f_frsize} are free). Free some, or give a data.cache.dir "
            "on another disk, or a smaller data.cache.max_bytes."
        )
    return DataError(
        f"{folder}: cannot keep {shard.url} ({error.strerror}). Give a data.cache.dir on another "
        "disk."
    )


@contextmanager
def disk_errors(folder: Path, shard: Shard) -> Iterator[None]:
    """Turn what the system says of the cache's folder into DataError."""
    try:
        yield
    except OSError as error:
        raise disk_error(folder, shard, shard.bytes, error) from error


def eviction_timeout(
    folder: Path, shard: Shard, why: str, max_bytes: int, seconds: float
) -> DataError:
    """Return the error for a shard that got no room, or that others did not bring in time."""
    if why != "full":
        return ShardError(
            f"{shard.url}: another process of this node did not fetch it in {seconds:.0f} s. Try "
            "again later.",
            "unreachable",
        )
    return DataError(
        f"{shard.url}: copies that are in use fill the {max_bytes} bytes of {folder}. Raise "
        "data.cache.max_bytes, or lower data.shuffle_window."
    )


def open_shard(shard: Shard, cache: ShardCache | None = None) -> BinaryIO:
    """Return a local file with the shard's bytes, open for reading; a remote one is fetched first.

    Raises:
        ShardError: The shard is absent, cannot be had, or has another size than the manifest says.
        DataError: The cache cannot take it.
    """
    if is_remote(shard.folder):
        return (cache or cache_of(Cache())).open(shard)
    path = Path(shard.folder, shard.name)
    try:
        file = _open_regular(path)
    except OSError as error:
        message = f"{path}: cannot read the shard ({error.strerror})."
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise ShardError(message, reason) from None
    try:
        check_size(shard, file.seek(0, 2))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _open_regular(path: Path) -> BinaryIO:
    # Without O_NONBLOCK the opening of a fifo waits for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def cache_for(manifest: Manifest, settings: Data) -> ShardCache | None:
    """Return the cache that the shards of `manifest` need, None when all of them are local."""
    remote = any(is_remote(folder) for folder in {shard.folder for shard in manifest.shards})
    return cache_of(settings.cache) if remote else None


def cache_of(settings: Cache) -> ShardCache:
    """Return the cache that `data.cache` describes, one for all data sets of this process."""
    return _cache(cache_folder(settings.dir), settings.max_bytes, settings.shard_seconds)


@lru_cache
def _cache(folder: Path, max_bytes: int | None, seconds: float) -> ShardCache:
    return ShardCache(folder, max_bytes, seconds)


@contextmanager
def storage_errors(shard: Shard) -> Iterator[None]:
    """Turn the storage's errors about a shard into ShardError, those about all into DataError."""
    try:
        yield
    except FileNotFoundError:
        message = f"{shard.url}: no such shard; check the path or the manifest."
        raise ShardError(message, "missing") from None
    except StorageError as error:
        if error.reason == "other":
            raise DataError(str(error)) from error
        raise ShardError(str(error), error.reason) from error
    except LaunchError as error:
        raise DataError(str(error)) from error


def check_size(shard: Shard, size: int) -> None:
    """Raise ShardError when the file has another size than the manifest says (-1: anything)."""
    if shard.bytes not in (-1, size):
        raise ShardError(
            f"{shard.url}: the shard has {size} bytes, the manifest says {shard.bytes}; {_AGAIN}",
            "size",
        )
