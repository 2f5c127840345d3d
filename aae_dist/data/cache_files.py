"""Files of the cache and their locks: pinned while they are read, removed when nobody does."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096


def pinned(path: Path) -> BinaryIO | None:
    """Return the copy with a shared lock on it; None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:  # evicted between the two calls
        os.close(descriptor)
        return None
    os.utime(descriptor)
    return os.fdopen(descriptor, "rb")


def new_part(part: Path, size: int) -> int:
    """Return the descriptor of a new, locked file that has its disk space."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        part.unlink()
        os.close(descriptor)
        raise
    return descriptor


def removed(path: Path) -> bool:
    """Remove a file that nobody has a lock on; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def rounded(size: int) -> int:
    """Return the bytes of the whole blocks that `size` bytes take."""
    return -(-size // BLOCK) * BLOCK


def disk_bytes(stat: os.stat_result) -> int:
    """Return what a file or folder counts for: its length or its blocks, whichever is more."""
    return max(rounded(stat.st_size), stat.st_blocks * 512)
