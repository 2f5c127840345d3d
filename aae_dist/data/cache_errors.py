"""Why the cache cannot take a shard, and what to do, in one line each."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aae_dist.data.manifest import Shard
from aae_dist.errors import DataError, ShardError


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
def disk_told(folder: Path, shard: Shard) -> Iterator[None]:
    """Turn what the system says of the cache's folder into DataError."""
    try:
        yield
    except OSError as error:
        raise disk_error(folder, shard, shard.bytes, error) from error


def stuck(folder: Path, shard: Shard, why: str, max_bytes: int, seconds: float) -> DataError:
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
