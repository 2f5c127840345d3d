"""A shard's bytes as a local file, wherever the shard lies."""

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from aae_dist.config.sections.data import Cache, Data
from aae_dist.data.cache import ShardCache
from aae_dist.data.cache_folder import cache_folder
from aae_dist.data.manifest import Manifest, Shard
from aae_dist.data.shard_errors import check_size
from aae_dist.errors import ShardError
from aae_dist.storage import is_remote


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
