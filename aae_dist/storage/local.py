"""Folders of this machine, or of a shared mount: plain os calls with fsync, rename and flock."""

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from aae_dist.errors import LaunchError
from aae_dist.storage.base import Entry, Names, Piece, check_key

TEMPORARY = ".aae-tmp"
LOCK = ".aae-lock"
# A write takes seconds; what is older than this was left by a process that was killed.
ORPHAN_SECONDS = 600.0
_PIECE_BYTES = 1 << 20
_SHOWN = 200
_LITTLE_SPACE = 1 << 20

_ADVICE = {
    errno.EACCES: "no permission to write there. Use another folder or ask for access",
    errno.EPERM: "no permission to write there. Use another folder or ask for access",
    errno.EROFS: "the file system is read-only. Use a folder on a writable one",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Use another path",
    errno.EISDIR: "it is a folder, not a file. Use another name",
    errno.ENAMETOOLONG: "a name in it, or all of it, is too long (255 bytes). Use a shorter one",
    errno.ELOOP: "it is a link, and none is followed when writing. Remove it",
    errno.ENXIO: "it is a pipe or a device, not a file. Remove it",
    errno.EEXIST: "it is a file, not a folder. Use another path",
    errno.EFBIG: "larger than this process may write. Raise the limit (ulimit -f)",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine. Close some",
    errno.ENOSPC: "no space left on the device. Free some, or use another folder",
    errno.EDQUOT: "the disk quota is used up. Free some space, or use another folder",
    errno.ENOTSUP: "the file system has no hard links. Use a folder on another one, or a bucket",
    errno.ENOLCK: "the file system has no file locks. Mount it with locks, or use a bucket",
    errno.ENOSYS: "the file system has no file locks. Mount it with locks, or use a bucket",
}


@contextmanager
def file_errors(place: str) -> Iterator[None]:
    """Map the operating system's errors that a user can fix to LaunchError, in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        # Names below an open folder are relative.
        named = str(error.filename or place)
        where = named if named.startswith("/") else place
        if error.errno in (errno.EEXIST, errno.ELOOP) and (link := _dead_link(Path(where))):
            raise LaunchError(link) from error
        shown = where if len(where) <= _SHOWN else f"{where[:_SHOWN]}..."
        raise LaunchError(f"{shown}: {_ADVICE[error.errno]}.") from error


def _dead_link(path: Path) -> str | None:
    """Return a line about a link in `path` that leads to nothing, None if there is none."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink():
            try:
                part.stat()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    return f"{part}: it is a link that leads back to itself. Remove it."
                target = f"{os.readlink(part)}"[:_SHOWN]
                return (
                    f"{part}: it is a link to {target}, which does not exist. Make that folder, "
                    "mount what it lies on, or remove the link."
                )
    return None


def explain_system_error(error: OSError) -> str | None:
    """Return an error of the operating system that a user can fix as one line, else None."""
    if "usable temporary directory" in str(error):
        return "no folder for temporary files can be written to. Set TMPDIR to one that has space."
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        places = {os.environ.get("TMPDIR") or "/tmp", os.getcwd(), os.path.expanduser("~")}  # noqa: S108
        full = [p for p in sorted(places) if os.path.isdir(p) and not _has_space(p)]
        error.filename = " and ".join(full) or "TMPDIR, or the run's folder"
    if error.errno not in _ADVICE:
        return None
    try:
        with file_errors(os.fspath(error.filename or os.getcwd())):
            raise error
    except LaunchError as explained:
        return str(explained)


def _has_space(folder: str) -> bool:
    return shutil.disk_usage(folder).free > _LITTLE_SPACE


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _write_file(
    folder: int,
    name: str,
    fill: Callable[[BinaryIO], object],
    place: Callable[..., object] = os.replace,
) -> None:
    """Let `fill` write the bytes of a file; it appears complete and durable, or not at all.

    `folder` is a descriptor. `place` gives the finished file its name: os.replace, or os.link to
    fail if that exists.
    """
    # The name cannot be guessed, and nothing that is there is opened: in a shared folder, it may be
    # a link to a file of the user's.
    temporary = f".{name[:32]}.{secrets.token_hex(8)}{TEMPORARY}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
    os.fsync(folder)  # the name, too, must survive a crash of the machine


@contextmanager
def _locked(folder: int, name: str) -> Iterator[None]:
    """Hold the one lock of a file; the kernel frees it when this process dies."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(f".{name}{LOCK}", flags, 0o666, dir_fd=folder), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_folder(parent: int, name: str, path: Path) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "is a link", str(path)) from error
        raise


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as /proc says: no folder can be made there
        raise OSError(errno.EROFS, "no folder can be made", error.filename) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError at once for a pipe, which would wait, and for a device."""
    if "\0" in str(path):  # ValueError otherwise
        raise OSError(errno.EINVAL, "a name cannot hold a NUL", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        raise OSError(errno.ENXIO, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


class LocalStorage:
    """A folder reached through the file system. See `Storage` for what each method promises."""

    def __init__(self, folder: str | Path, top: Path | None = None) -> None:
        """Name the folder; a relative path counts from the working directory, '~' is the home.

        Links are followed on the way to `top`, by default the folder itself, and in reading. No
        write follows one below it: others may be able to place links there.
        """
        self._folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._top = top or self._folder

    @property
    def uri(self) -> str:
        return str(self._folder)

    def child(self, name: str) -> "LocalStorage":
        return LocalStorage(self._path(name), self._top)

    def read(self, key: str) -> bytes:
        with file_errors(self.uri), open_regular(self._path(key)) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with file_errors(self.uri), open_regular(self._path(key)) as file:
            file.seek(start)
            return file.read(length)

    def write(self, key: str, data: bytes) -> None:
        with self._parent(key) as (folder, name):
            _write_file(folder, name, lambda file: file.write(data))

    def create(self, key: str, data: bytes) -> bool:
        with self._parent(key) as (folder, name):
            try:
                _write_file(folder, name, lambda file: file.write(data), place=os.link)
            except FileExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        path = self._path(key)
        if not path.exists():
            return False
        with self._parent(key) as (folder, name), _locked(folder, name):
            if not path.exists() or path.read_bytes() != expected:
                return False
            _write_file(folder, name, lambda file: file.write(data))
            return True

    def upload(self, key: str, path: Path) -> None:
        with self._parent(key) as (folder, name), path.open("rb") as source:
            _write_file(folder, name, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def list(self, prefix: str = "") -> list[Entry]:
        top = self._path(prefix) if prefix else self._folder
        found = []
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                # A file may vanish between its listing and its stat: others work here too.
                size = None if name.endswith((TEMPORARY, LOCK)) else _size(path)
                if size is not None:
                    found.append(Entry(path.relative_to(self._folder).as_posix(), size))
        return sorted(found, key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Names:
        top = self._path(prefix) if prefix else self._folder
        if not top.is_dir():
            return []
        return sorted(path.name for path in top.iterdir() if path.is_dir())

    def is_empty(self) -> bool:
        if not self._folder.is_dir():
            return True
        with file_errors(self.uri), os.scandir(self._folder) as entries:
            return next(entries, None) is None

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), self._parent(key, create=False) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def clear(self, prefix: str) -> None:
        if not self._path(prefix).is_dir():
            return
        with self._parent(prefix, create=False) as (folder, name):
            if self._path(prefix).is_symlink():
                os.unlink(name, dir_fd=folder)
            else:
                shutil.rmtree(name, dir_fd=folder)
            os.fsync(folder)

    def size(self, key: str) -> int | None:
        with file_errors(self.uri):
            return _size(self._path(key))

    def stat(self, key: str) -> Entry | None:
        path = self._path(key)
        try:
            with file_errors(str(path)):
                found = path.stat()
        except FileNotFoundError:
            return None
        except LaunchError as error:
            if isinstance(error.__cause__, NotADirectoryError):
                return None
            raise
        return Entry(key, found.st_size, modified=found.st_mtime) if path.is_file() else None

    def stream(
        self, key: str, start: int, end: int, version: Entry | None = None
    ) -> Iterator[Piece]:
        with file_errors(self.uri), open_regular(self._path(key)) as file:
            file.seek(start)
            while piece := file.read(min(_PIECE_BYTES, end - file.tell())):
                yield piece

    def check_writable(self) -> None:
        """Write and remove a probe, and what killed writers left here."""
        probe = f".probe-{os.getpid()}{TEMPORARY}"
        with file_errors(self.uri):
            self.write(probe, b"")
            self.delete(probe)
            for path in self._folder.glob(f".*{TEMPORARY}"):
                # Another writer's file may get its final name between the listing and here.
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                        path.unlink()

    def reconnected(self) -> "LocalStorage":
        return self

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextmanager
    def _parent(self, key: str, create: bool = True) -> Iterator[tuple[int, str]]:
        """Yield a descriptor of the folder of `key`, and the file's name; no link is followed."""
        path = self._path(key)
        *folders, name = path.relative_to(self._top).parts
        with file_errors(str(path)):
            if create:
                _make_folder(self._top)
            descriptor, place = os.open(self._top, _FOLDER), self._top
            try:
                for part in folders:
                    place = place / part
                    if create:
                        with suppress(FileExistsError):
                            os.mkdir(part, dir_fd=descriptor)
                    inner = _open_folder(descriptor, part, place)
                    os.close(descriptor)
                    descriptor = inner
                yield descriptor, name
            finally:
                os.close(descriptor)
