"""Number of samples of a shard from its tar headers, read in ranges without keeping the shard."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from aae_dist.data.cache.shard_cache import ShardCache, storage_errors
from aae_dist.data.format.manifest import Shard
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.format.tar import DamagedTarError, index_tar
from aae_dist.errors import ShardError
from aae_dist.storage import Entry, Storage, is_remote, open_storage

Counted = tuple[Shard, str]
"""A shard with its number of samples, and the tag or time of the counted version."""

_SMALLEST_BYTES = 64 << 10
_LARGEST_BYTES = 8 << 20
_SECONDS = 600.0
"""How long one shard may take to arrive."""


class RemoteBuffer:
    """A remote file as a buffer to slice, downloaded in chunks.

    A chunk that continues the last one is twice as large, up to 8 MiB: shards of small files are
    read through. After a gap it is 64 KiB: of large files only the headers are read.

    Args:
        storage: The file's folder.
        version: Its name there, its size, and the tag or the time of the version to read.
    """

    def __init__(self, storage: Storage, version: Entry) -> None:
        self._storage, self._version = storage, version
        self._key, self._size = version.key, version.size
        self._start, self._chunk = 0, b""
        self._next_bytes = _SMALLEST_BYTES

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: "slice[Any, Any, Any]") -> bytes:
        """Return the bytes of a slice; a slice must not start before the last one."""
        start, stop, _ = key.indices(self._size)
        end = self._start + len(self._chunk)
        if not self._start <= start <= stop <= end:
            kept = self._chunk[start - self._start :] if self._start <= start < end else b""
            # A gap smaller than a chunk is read through: a request costs more than its bytes.
            continues = start - end <= self._next_bytes
            self._next_bytes = (
                min(2 * self._next_bytes, _LARGEST_BYTES) if continues else _SMALLEST_BYTES
            )
            first = start + len(kept)
            last = min(max(stop, first + self._next_bytes), self._size)
            self._start, self._chunk = start, kept + self._download(first, last)
        return self._chunk[start - self._start : stop - self._start]

    def _download(self, start: int, end: int) -> bytes:
        parts = list(self._storage.stream(self._key, start, end, self._version))
        data = b"".join(parts)
        if len(data) != end - start:
            where = f"{self._storage.uri}/{self._key}"
            message = f"{where}: {len(data)} bytes from byte {start} on, wanted {end - start}."
            raise ShardError(message, "unreachable")
        return data


def count_shard(shard: Shard, before: Counted | None, cache: ShardCache | None) -> Counted:
    """Return the shard with its current number of samples, size and tag.

    Args:
        shard: Its address; its other fields are ignored.
        before: An earlier count, taken if the file has not changed since.
        cache: Keeps a remote shard that will be read soon; None to keep nothing.

    Raises:
        ShardError: It is absent, damaged or unreachable.
    """
    with storage_errors(shard):
        found = open_storage(shard.folder, _SECONDS).stat(shard.name)
        if found is None:
            raise FileNotFoundError
    now = replace(shard, samples=-1, bytes=found.size, etag=found.etag)
    stamp = found.etag or _time_of(shard, found)
    if before is not None and (before[0].bytes, before[1]) == (now.bytes, stamp):
        return replace(now, samples=before[0].samples), stamp
    return replace(now, samples=_num_samples(now, found, cache)), stamp


def try_count_shard(
    shard: Shard, before: Counted | None, cache: ShardCache | None
) -> Counted | ShardError:
    """Return the result of `count_shard`, or its error: one bad shard does not end work on many."""
    try:
        return count_shard(shard, before, cache)
    except ShardError as error:
        return error.with_traceback(None)


def _time_of(shard: Shard, found: Entry) -> str:
    """Return the time of change of a file without a tag."""
    if is_remote(shard.folder):
        return str(found.modified)
    return str(Path(shard.folder, shard.name).stat().st_mtime_ns)


def _num_samples(shard: Shard, found: Entry, cache: ShardCache | None) -> int:
    if not is_remote(shard.folder) or cache is not None:
        return len(ShardReader(shard, check_count=False, cache=cache))
    # Imported here: remote storage has loaded it, and local shards need no obstore.
    from aae_dist.storage.bucket import RangesRefusedError

    if not shard.name.lower().endswith(".tar"):
        return _count_of_copy(shard)  # gzip has no ranges
    storage = open_storage(shard.folder, _SECONDS)
    try:
        with storage_errors(shard):
            try:
                return len(index_tar(RemoteBuffer(storage, found)))
            except RangesRefusedError:
                return _count_of_copy(shard)
    except DamagedTarError as error:
        raise ShardError(f"{shard.url}: {error}.", error.reason) from None


def _count_of_copy(shard: Shard) -> int:
    """Count from a temporary copy on the disk."""
    with tempfile.TemporaryDirectory(prefix="aae_dist-count-") as folder:
        cache = ShardCache(Path(folder), None, _SECONDS)
        return len(ShardReader(shard, check_count=False, cache=cache))
