"""The folder for copies of shards: on this node, ours, and closed to other users."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from aae_dist.errors import DataError

_NAME = "aae_dist-shards"


def cache_folder(parent: str | None = None) -> Path:
    """Return the folder for copies of shards below `parent`, made if need be.

    Args:
        parent: `data.cache.dir`; None takes the user's cache folder, or else the temporary one.

    Raises:
        DataError: It cannot be made, is a symbolic link, or belongs to somebody else.
    """
    if parent is not None:
        return checked_folder(Path(os.path.abspath(os.path.expanduser(parent))), _NAME)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        return checked_folder(Path(home), _NAME)
    except DataError:
        # Containers often run with a home that nobody may write to.
        return checked_folder(Path(tempfile.gettempdir()), f"{_NAME}-{os.getuid()}")


def checked_folder(parent: Path, name: str) -> Path:
    """Return the folder `name` in `parent`, made if need be; DataError unless it is ours alone."""
    folder = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _check(folder, folder.lstat())
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be used as a cache ({error.strerror}). Give another data.cache.dir."
        ) from None
    return folder


def _check(folder: Path, found: os.stat_result) -> None:
    """Refuse what another user could have put there, to read or change what we cache."""
    if not stat.S_ISDIR(found.st_mode):
        raise DataError(
            f"{folder} is not a folder but a link or a file. Remove it, or give another "
            "data.cache.dir."
        )
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DataError(
            f"{folder} is open to others (mode {found.st_mode & 0o777:o}, owner {found.st_uid}). "
            f"Run chmod 700 on it, or give another data.cache.dir."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: no permission to write there. Give another data.cache.dir.")
