"""The directory of the cache and its files: owned by this user, closed to others, and locked."""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from aae_dist.errors import DataError

Size = TypeVar("Size", int, np.typing.NDArray[np.int64])

_NAME = "aae_dist-shards"
_ADVICE = "Give another data.cache.dir."
BLOCK = 4096
LOCK = "lock"
"""Name of the file whose lock serializes changes, with a number: see `noted`."""
_NOTE_DIGITS = 20


def cache_folder(parent: str | None = None) -> Path:
    """Return the directory of copies in `data.cache.dir`, or else in the user's cache or /tmp."""
    if parent is not None:
        return checked_folder(Path(os.path.abspath(os.path.expanduser(parent))), _NAME)
    return own_folder(_NAME)


def own_folder(name: str, advice: str = _ADVICE) -> Path:
    """Return the directory `name` in the user's cache directory, or else in the temporary one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        return checked_folder(Path(home), name, advice)
    except DataError:
        # Containers often run with a home directory that is not writable.
        return checked_folder(Path(tempfile.gettempdir()), f"{name}-{os.getuid()}", advice)


def checked_folder(parent: Path, name: str, advice: str = _ADVICE) -> Path:
    """Return `name` in `parent`, made if need be; DataError with `advice` if others may use it."""
    folder = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        problem = _problem(folder, folder.lstat())
    except OSError as error:
        problem = f"cannot be used ({error.strerror})"
    if problem:
        raise DataError(f"{folder}: {problem}. {advice}")
    return folder


def _problem(folder: Path, found: os.stat_result) -> str:
    """Return the reason against the directory: another user may read or change its files."""
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder but a link or a file"
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        mode = found.st_mode & 0o777
        return f"is open to others (mode {mode:o}, owner {found.st_uid}; chmod 700 closes it)"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "no permission to write there"
    return ""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the directory's lock; the value is the descriptor of the lock's file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def noted(lock: int) -> int | None:
    """Return the most bytes that the directory holds, None if the lock's file does not say."""
    text = os.pread(lock, _NOTE_DIGITS + 1, 0)
    return int(text) if len(text) == _NOTE_DIGITS and text.isdigit() else None


def note(lock: int, num_bytes: int) -> None:
    """Write the number that `noted` returns; on a full disk nothing is noted."""
    try:
        os.pwrite(lock, str(num_bytes).zfill(_NOTE_DIGITS).encode(), 0)
    except OSError:
        os.ftruncate(lock, 0)


def open_pinned(path: Path) -> BinaryIO | None:
    """Open a copy with a shared lock on it; None when there is no copy."""
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


def create_partial(part: Path, size: int) -> int:
    """Return the descriptor of a new, locked file with its disk space allocated."""
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


def try_remove(path: Path) -> bool:
    """Remove a file unless it is locked; return whether it is gone."""
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


def rounded(size: Size) -> Size:
    """Return `size`, a number or an array of them, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def disk_bytes(stat: os.stat_result) -> int:
    """Return the disk usage of a file or directory: its length or its blocks, whichever is more."""
    return max(rounded(stat.st_size), stat.st_blocks * 512)
