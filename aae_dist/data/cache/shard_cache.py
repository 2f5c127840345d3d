"""Copies of remote shards on this node: within a hard bound, shared by the node's ranks.

The directory is the whole state, so a process may die at any point:

- NAME is a complete copy; its readers hold a shared lock on it;
- NAME.part is a download; its writer holds an exclusive lock on it, and it has its final size from
  the start, so that the space on disk is the space that was reserved;
- `lock` is held while files are created and removed.

Locks die with their process, so an unlocked .part file is stale and may be deleted, and an unlocked
copy may be evicted.
"""

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from aae_dist.config.sections.run import Cache, Data
from aae_dist.data.cache import directory
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.errors import ConfigError, DataError, LaunchError, ShardError, StorageError
from aae_dist.storage import Entry, download, is_remote, local, open_storage

PART = ".part"
URL_DIGITS = 40
_POLL_SECONDS = 0.02
_MAX_CHANGES = 3
_EVICTED_AHEAD = 64  # one more copy is evicted per so many in the directory

NextUse = Callable[[Sequence[str]], Sequence[float]]
"""From the `url_digest`s of copies to the position at which each is used next; infinity for
never."""


class Blocked(Enum):
    """Why a download cannot start."""

    CACHED = "the shard is in the cache"
    BUSY = "another process or thread downloads it"
    FULL = "no copies can be evicted for it"


@dataclass(frozen=True)
class Reservation:
    """Space on the disk for one shard: a new, locked .part file of its final size."""

    descriptor: int
    part: Path
    path: Path  # name of the complete copy


@dataclass(frozen=True)
class _Copy:
    path: Path
    bytes: int
    used_at: float


class ShardCache:
    """Copies of remote shards; all processes of the node may share one directory.

    `max_bytes` bounds everything in the directory, at any time. None takes half of the disk's free
    space, with what is cached already counted as free. A shard may take `seconds` to arrive, with
    all retries.

    The lock's file says how many bytes the directory holds at most, so that its files, of which
    there may be 100,000, are counted only when that number reaches the bound.
    """

    def __init__(self, folder: Path, max_bytes: int | None, seconds: float) -> None:
        self.folder, self._seconds = folder, seconds
        self.next_use: NextUse = lambda digests: [math.inf] * len(digests)
        self._versions: dict[str, Entry] = {}
        self.max_bytes = max_bytes if max_bytes is not None else self._half_of_the_disk()

    def open(self, shard: Shard) -> BinaryIO:
        """Return the shard's copy, open for reading; it stays in the cache until it is closed.

        The lock that keeps it is the file's: a mapping of it or a duplicate of its descriptor
        keeps the copy just as well. Raises ShardError if the shard is absent, late, or not what the
        manifest says; DataError if the disk is full, or copies in use fill the bound.
        """
        with disk_errors(self.folder, shard):
            return self._open(shard)

    def _open(self, shard: Shard) -> BinaryIO:
        deadline = time.monotonic() + self._seconds
        changes = 0
        while True:
            began = time.monotonic()
            version = self._version(shard)
            path = self.folder / _name(shard.url, version)
            if file := directory.open_pinned(path):
                return file
            match self._reserve(shard, path, version.size, due=None):
                case Reservation() as reservation:
                    try:
                        self._download(shard, version, reservation)
                    except ShardError as error:
                        changes += 1
                        if error.reason != "changed" or shard.etag or changes == _MAX_CHANGES:
                            raise
                        del self._versions[shard.url]
                case Blocked.CACHED:
                    continue
                case Blocked() as why if time.monotonic() > deadline:
                    raise eviction_timeout(self.folder, shard, why, self.max_bytes, self._seconds)
                case _:
                    time.sleep(max(_POLL_SECONDS, time.monotonic() - began))

    def reserve(self, shard: Shard, due: float) -> Callable[[], None] | Blocked:
        """Reserve space for a shard, evicting copies that are used later than `due`.

        Returns the download, to be called once, or why there is none. Both raise as `open`.
        """
        with disk_errors(self.folder, shard):
            version = self._version(shard)
            path = self.folder / _name(shard.url, version)
            if path.exists():
                return Blocked.CACHED
            reservation = self._reserve(shard, path, version.size, due)
        if isinstance(reservation, Blocked):
            return reservation
        return partial(self._download, shard, version, reservation)

    def _version(self, shard: Shard) -> Entry:
        """Return size and tag of the wanted version; the manifest's if it has a tag."""
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

    def _reserve(
        self, shard: Shard, path: Path, size: int, due: float | None
    ) -> Reservation | Blocked:
        part = path.with_name(path.name + PART)
        with self._locked() as lock:
            # Another process may have the shard, or be downloading it.
            if path.exists():
                return Blocked.CACHED
            if not directory.try_remove(part):
                return Blocked.BUSY
            # Evict other copies until it fits the bound.
            wanted = copy_bytes(size)
            if wanted > self.max_bytes:
                raise ConfigError(
                    f"{shard.url} takes {size} bytes and data.cache.max_bytes is "
                    f"{self.max_bytes}; give at least {wanted}, or write smaller shards."
                )
            if not self._make_room(lock, wanted, due):
                return Blocked.FULL
            # Take its disk space. The disk may have less than the bound: others use it too.
            while True:
                try:
                    return Reservation(directory.create_partial(part, size), part, path)
                except OSError as error:
                    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    if not (is_full and self._evict(self._contents()[0], size, due)):
                        raise disk_error(self.folder, shard, size, error) from error

    def _make_room(self, lock: int, wanted: int, due: float | None) -> bool:
        """Return whether `wanted` more bytes fit the bound, and add them to what is noted."""
        used = directory.noted(lock)
        if used is None or used + wanted > self.max_bytes:
            copies, used = self._contents()
            missing = used + wanted - self.max_bytes
            if missing > 0:
                freed = self._evict(copies, missing, due)
                used -= freed
                wanted = wanted if freed >= missing else 0
        directory.note(lock, used + wanted)
        return wanted > 0

    def _evict(self, copies: list[_Copy], missing: int, due: float | None) -> int:
        """Remove copies that are used later than `due`; return the bytes that went.

        None goes if all of these together have less than `missing` bytes.
        """
        # First the copy that is used furthest in the future (Belady), then the one that was used
        # longest ago.
        uses = self.next_use([copy.path.name[:URL_DIGITS] for copy in copies])
        pairs = [pair for pair in zip(uses, copies, strict=True) if due is None or pair[0] > due]
        if sum(copy.bytes for _, copy in pairs) < missing:
            return 0
        pairs.sort(key=lambda pair: (-pair[0], pair[1].used_at))
        # Of many some more: to count them all again for each download would be quadratic.
        freed, spare = 0, len(copies) // _EVICTED_AHEAD
        for _, copy in pairs:
            if freed >= missing:
                if spare == 0:
                    break
                spare -= 1
            if directory.try_remove(copy.path):
                freed += copy.bytes
        return freed

    def _contents(self) -> tuple[list[_Copy], int]:
        """Return the complete copies, and the bytes of everything in the directory."""
        copies, used = [], directory.disk_bytes(self.folder.stat())
        for entry in list(os.scandir(self.folder)):
            path = Path(entry.path)
            if entry.name.endswith(PART) and directory.try_remove(path):
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # a failed download has just removed its part
                continue
            used += directory.disk_bytes(found)
            if not entry.name.endswith(PART) and entry.name != directory.LOCK:
                copies.append(_Copy(path, directory.disk_bytes(found), found.st_mtime))
        return copies, used

    def _download(self, shard: Shard, version: Entry, reservation: Reservation) -> None:
        descriptor, part, complete = reservation.descriptor, reservation.part, False
        try:
            with storage_errors(shard):
                storage = open_storage(shard.folder, self._seconds)
                deadline = time.monotonic() + self._seconds
                download.Download(storage, version, deadline).write_to(descriptor)
                # fsync before rename: after a crash, a final name must imply complete contents.
                os.fdatasync(descriptor)
            with self._locked():
                part.replace(reservation.path)
            complete = True
        except OSError as error:
            raise disk_error(self.folder, shard, version.size, error) from error
        finally:
            # Our lock is on it until here, so no other process has taken the name.
            if not complete:
                part.unlink(missing_ok=True)
            os.close(descriptor)

    def _locked(self) -> contextlib.AbstractContextManager[int]:
        return directory.locked(self.folder)

    def _half_of_the_disk(self) -> int:
        disk = os.statvfs(self.folder)
        with self._locked():
            _, used = self._contents()
        return (disk.f_bavail * disk.f_frsize + used) // 2


def url_digest(url: str) -> str:
    """Return the prefix of the names of all copies of this address."""
    return sha256(url.encode()).hexdigest()[:URL_DIGITS]


def copy_bytes(size: directory.Size) -> directory.Size:
    """Return the bytes of the bound that a shard of `size` bytes takes, or each of an array."""
    return directory.rounded(size) + directory.BLOCK


def _name(url: str, version: Entry) -> str:
    # A server without tags has the time to tell versions apart, or nothing.
    which = version.etag if version.etag is not None else version.modified
    tag = sha256(f"{which}\n{version.size}".encode()).hexdigest()
    return f"{url_digest(url)}-{tag[:24]}"


def open_shard(shard: Shard, cache: ShardCache | None = None) -> BinaryIO:
    """Return a local file with the shard's bytes, open for reading; a remote one is downloaded.

    Raises ShardError if it is absent, unreachable or of another size than the manifest says, and
    DataError if the cache cannot take it.
    """
    if is_remote(shard.folder):
        return (cache or cache_of(Cache())).open(shard)
    path = Path(shard.folder, shard.name)
    try:
        file = local.open_regular(path)
    except OSError as error:
        message = f"{path}: cannot read the shard ({error.strerror})."
        is_missing = isinstance(error, FileNotFoundError)
        raise ShardError(message, "missing" if is_missing else "unreadable") from None
    try:
        check_size(shard, file.seek(0, 2))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def cache_for(manifest: Manifest, settings: Data) -> ShardCache | None:
    """Return the cache that the shards of `manifest` need, None when all of them are local."""
    remote = any(is_remote(folder) for folder in {shard.folder for shard in manifest.shards})
    return cache_of(settings.cache) if remote else None


def cache_of(settings: Cache) -> ShardCache:
    """Return the cache that `data.cache` describes, one for all data sets of this process."""
    return _cache(directory.cache_folder(settings.dir), settings.max_bytes, settings.shard_seconds)


@lru_cache
def _cache(folder: Path, max_bytes: int | None, seconds: float) -> ShardCache:
    return ShardCache(folder, max_bytes, seconds)


def check_size(shard: Shard, size: int) -> None:
    """Raise ShardError when the file has another size than the manifest says (-1: anything)."""
    if shard.bytes not in (-1, size):
        raise ShardError(
            f"{shard.url}: the shard has {size} bytes, the manifest says {shard.bytes}; write the "
            "manifest again with: aae-dist data index PATTERN",
            "size",
        )


@contextlib.contextmanager
def storage_errors(shard: Shard) -> Iterator[None]:
    """Map storage errors to ShardError (this shard) or DataError (the whole data set)."""
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


@contextlib.contextmanager
def disk_errors(folder: Path, shard: Shard) -> Iterator[None]:
    """Map the operating system's errors about the cache's directory to DataError."""
    try:
        yield
    except OSError as error:
        raise disk_error(folder, shard, shard.bytes, error) from error


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


def eviction_timeout(
    folder: Path, shard: Shard, why: Blocked, max_bytes: int, seconds: float
) -> DataError:
    """Return the error for a shard that stayed blocked until its deadline."""
    if why is not Blocked.FULL:
        return ShardError(
            f"{shard.url}: another process of this node did not fetch it in {seconds:.0f} s. Try "
            "again later.",
            "unreachable",
        )
    return DataError(
        f"{shard.url}: copies that are in use fill the {max_bytes} bytes of {folder}. Raise "
        "data.cache.max_bytes, or lower data.shuffle_window."
    )
