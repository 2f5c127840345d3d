"""What an index run has counted so far, so that it can go on after a stop."""

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from aae_dist.data.cache_folder import checked_folder
from aae_dist.data.manifest import Shard

_MAX_SAMPLES = 10**9


class Journal:
    """Counted shards of one list, a line each, in the user's cache folder on this machine.

    Args:
        urls: The shards that are to be counted; the same list finds its journal again.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        name = sha256("\n".join(urls).encode()).hexdigest()
        self._path = checked_folder(home, "aae_dist-index") / f"{name}.jsonl"
        self.entries: dict[str, tuple[Shard, str]] = dict(self._read(frozenset(urls)))
        """What was counted before, by address, with the stamp of its version."""

    def __enter__(self) -> Self:
        """Begin to write."""
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop writing; what is noted stays."""
        self._file.close()

    def add(self, shard: Shard, stamp: str) -> None:
        """Note a shard that was counted."""
        entry = [shard.folder, shard.name, shard.samples, shard.bytes, shard.etag, stamp]
        self._file.write(json.dumps(entry) + "\n")

    def remove(self) -> None:
        """Forget it all: the manifest is written."""
        self._path.unlink(missing_ok=True)

    def _read(self, urls: frozenset[str]) -> list[tuple[str, tuple[Shard, str]]]:
        found = []
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                folder, name, samples, size, etag, stamp = json.loads(line)
                shard = Shard(str(folder), str(name), int(samples), int(size), etag)
            except (ValueError, TypeError):
                continue  # the last line of a process that was killed
            if shard.url in urls and 0 <= shard.samples <= _MAX_SAMPLES:
                found.append((shard.url, (shard, str(stamp))))
        return found
