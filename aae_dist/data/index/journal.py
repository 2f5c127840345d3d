"""Progress log that lets an interrupted `data index` resume."""

import json
import os
import posixpath
from collections.abc import Sequence
from hashlib import sha256
from typing import Self

from aae_dist.data.cache.directory import own_folder
from aae_dist.data.format.manifest import Shard
from aae_dist.errors import LaunchError

_MAX_SAMPLES = 10**9
_ADVICE = "Set XDG_CACHE_HOME to a folder of yours, for notes on what was counted."


class Journal:
    """Counted shards, one per line, in the user's cache directory on this machine.

    Lists of shards in the same folders share a journal: a list without a damaged shard, or with new
    ones, resumes from the counts of the last list.

    Args:
        urls: The shards to count.

    Raises:
        DataError: No directory can hold it.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        folders = sorted({posixpath.dirname(url) for url in urls})
        name = sha256("\n".join(folders).encode()).hexdigest()
        self._path = own_folder("aae_dist-index", _ADVICE) / f"{name}.jsonl"
        self._urls = frozenset(urls)
        noted = self._read()
        self.entries: dict[str, tuple[Shard, str]] = {
            url: entry for url, entry in noted.items() if url in self._urls
        }
        """Earlier counts by address, with the tag or time of the counted version."""

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, shard: Shard, stamp: str) -> None:
        """Log a counted shard."""
        self._file.write(_line(shard, stamp))

    def remove(self) -> None:
        """Remove these shards: their manifest is written."""
        others = [entry for url, entry in self._read().items() if url not in self._urls]
        if not others:
            self._path.unlink(missing_ok=True)
            return
        part = self._path.with_suffix(f".{os.getpid()}")
        part.write_text("".join(_line(*entry) for entry in others), "utf-8")
        part.replace(self._path)

    def _read(self) -> dict[str, tuple[Shard, str]]:
        found = {}
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                folder, name, samples, size, etag, stamp = json.loads(line)
                shard = Shard(str(folder), str(name), int(samples), int(size), etag)
                url = shard.url
            except (ValueError, TypeError, LaunchError):
                continue  # the last line of a process that was killed
            if 0 <= shard.samples <= _MAX_SAMPLES:
                found[url] = shard, str(stamp)
        return found


def _line(shard: Shard, stamp: str) -> str:
    entry = [shard.folder, shard.name, shard.samples, shard.bytes, shard.etag, stamp]
    return json.dumps(entry) + "\n"
