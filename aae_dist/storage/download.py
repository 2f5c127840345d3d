"""Whole files from a bucket or a web server: ranges in parallel, written directly to the file.

obstore retries and resumes interrupted bodies. This module checks that each range is complete and
that the download ends in time.
"""

import os
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from aae_dist.errors import StorageError
from aae_dist.storage.base import Entry, Piece, Storage

RANGE_BYTES = 16 << 20
_THREADS = 4
_MAX_EMPTY = 6
"""Consecutive answers without a byte, each after obstore's own retries."""


@dataclass
class Download:
    """The download of one file to an open descriptor."""

    storage: Storage
    version: Entry
    """The file's name in the folder, its bytes, and the tag or time that must not change."""
    deadline: float
    """When to fail, in seconds of `time.monotonic`."""

    def __post_init__(self) -> None:
        self.key, self.size = self.version.key, self.version.size
        self._stop = threading.Event()

    def write_to(self, descriptor: int) -> None:
        """Write the file; StorageError if it changed, is forbidden, or is not here in time."""
        # Imported here: local storage needs no obstore, and a download has loaded it.
        from aae_dist.storage.bucket import RangesRefusedError

        starts = range(0, self.size, RANGE_BYTES)
        try:
            if len(starts) < 2:
                return self._range(descriptor, 0, self.size)
            self._in_parallel(descriptor, starts)
        except RangesRefusedError:
            self._whole(descriptor)
        return None

    def _in_parallel(self, descriptor: int, starts: Iterable[int]) -> None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="range") as pool:
            parts = [
                pool.submit(self._range, descriptor, start, min(start + RANGE_BYTES, self.size))
                for start in starts
            ]
            done, waiting = wait(parts, return_when=FIRST_EXCEPTION)
            if waiting:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        for part in done:
            part.result()

    def _range(self, descriptor: int, start: int, end: int) -> None:
        num_empty = 0
        while start < end:
            if time.monotonic() > self.deadline:
                raise self._late("not here in time")
            before = start
            pieces = self.storage.stream(self.key, start, end, self.version)
            start = self._store(descriptor, pieces, start, end)
            num_empty = 0 if start > before else num_empty + 1
            if start < end and num_empty:
                self._wait(num_empty)

    def _whole(self, descriptor: int) -> None:
        from aae_dist.storage.bucket import BucketStorage

        assert isinstance(self.storage, BucketStorage)
        self._stop.clear()
        for turn in range(1, _MAX_EMPTY):
            pieces = self.storage.stream_whole(self.key, self.version)
            if self._store(descriptor, pieces, 0, self.size) == self.size:
                return
            self._wait(turn)
        raise self._late("ends too early, again and again")

    def _store(self, descriptor: int, pieces: Iterable[Piece], start: int, end: int) -> int:
        """Write the pieces from byte `start` on; return where they ended."""
        for piece in pieces:
            if start + len(piece) > end:
                raise StorageError(f"{self._url}: more bytes than its {self.size}.", "changed")
            view = memoryview(piece)
            while view:
                written = os.pwrite(descriptor, view, start)
                view, start = view[written:], start + written
            if time.monotonic() > self.deadline:
                raise self._late(f"{start} of {self.size} bytes when its time was up")
            if self._stop.is_set():
                raise self._late("another part failed")
        return start

    def _wait(self, turn: int) -> None:
        seconds = random.uniform(0, 0.1 * 2**turn)  # noqa: S311 - jitter, not a secret
        if turn >= _MAX_EMPTY or time.monotonic() + seconds > self.deadline:
            raise self._late("answers without the bytes that were asked for")
        time.sleep(seconds)

    @property
    def _url(self) -> str:
        return f"{self.storage.uri}/{self.key}"

    def _late(self, what: str) -> StorageError:
        return StorageError(f"{self._url}: {what}. Try again later.", "unreachable")
