"""Copies of remote shards on this node: each is downloaded once and shared by the node's ranks."""

import fcntl
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from aae_dist.data.manifest import Shard
from aae_dist.errors import DataError, LaunchError, ShardError
from aae_dist.storage import is_remote, open_storage


def local_path(shard: Shard) -> Path:
    """Return the path of a local file with the shard's bytes, downloading it first if need be.

    Raises:
        DataError: The shard is absent, cannot be read, or has another size than the manifest says.
    """
    if not is_remote(shard.folder):
        path = Path(shard.folder, shard.name)
        _check_local(shard, path)
        return path
    version = f"{shard.url}\n{shard.bytes}\n{shard.etag or ''}"
    path = cache_folder() / (sha256(version.encode()).hexdigest() + Path(shard.name).suffix)
    if not path.exists():
        _download_once(shard, path)
    return path


def cache_folder() -> Path:
    """Return the node-local folder for copies of shards, made if need be, closed to other users."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for parent in (Path(home, "aae_dist"), Path(tempfile.gettempdir(), f"aae_dist-{os.getuid()}")):
        folder = parent / "shards"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise DataError(f"No writable cache folder: tried {home} and {tempfile.gettempdir()}.")


def _check_local(shard: Shard, path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        text = f"{path}: cannot read the shard ({error.strerror})."
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise ShardError(text, reason=reason) from None
    if size != shard.bytes:
        raise ShardError(_wrong_size(shard, size), reason="size")


def _download_once(shard: Shard, path: Path) -> None:
    # One process of the node downloads; the others wait for the lock and then find the file.
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="incoming-") as folder:
            incoming = Path(folder, "shard")
            _download(shard, incoming)
            size = incoming.stat().st_size
            if size != shard.bytes:
                raise ShardError(_wrong_size(shard, size), reason="size")
            incoming.replace(path)


def _download(shard: Shard, target: Path) -> None:
    try:
        open_storage(shard.folder).download(shard.name, target)
    except FileNotFoundError:
        text = f"{shard.url}: no such shard; check the path or the manifest."
        raise ShardError(text, reason="missing") from None
    except LaunchError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        text = f"{shard.url}: cannot download ({error})."
        raise ShardError(text, reason="unreachable") from error


def _wrong_size(shard: Shard, size: int) -> str:
    return (
        f"{shard.url}: the shard has {size} bytes, the manifest says {shard.bytes}; "
        "write the manifest again with: aae-dist data index PATTERN"
    )
