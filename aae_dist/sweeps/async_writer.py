"""Files of a folder, written by a thread of its own, so that callers never wait for storage."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage


class AsyncWriter:
    """Writes dirty files in the order in which they were marked, each with its newest content.

    Methods may be called from any thread. The end of the process waits for dirty files.
    """

    def __init__(self, folder: Storage, content: Callable[[str], bytes | None]) -> None:
        """Write to `folder`; nothing is written yet.

        Args:
            folder: where the files go.
            content: returns the bytes of a key when its turn has come; None for nothing to write.
        """
        self._folder, self._content = folder, content
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="async-writer")
        self._dirty: dict[str, None] = {}  # a set that keeps its order
        self._failed: dict[str, LaunchError | OSError] = {}
        self._pending: Future[None] | None = None
        self._is_writing = False
        self._problem = ""
        self._fault: Exception | None = None

    def mark_dirty(self, *keys: str) -> None:
        """Mark files dirty. A file that is already queued keeps its position."""
        with self._lock:
            self._dirty |= dict.fromkeys(keys)
            if self._dirty and not self._is_writing:
                self._is_writing = True
                self._pending = self._thread.submit(self._write_all)

    def retry_failed(self) -> None:
        """Try again what could not be written; raise what `content` raised."""
        if self._fault is not None:
            raise self._fault
        with self._lock:
            failed = tuple(self._failed)
        self.mark_dirty(*failed)

    def flush(self) -> None:
        """Return when no file is dirty: written or failed; raise what `content` raised."""
        if self._pending is not None:
            self._pending.result()
        if self._fault is not None:
            raise self._fault

    def failure(self, key: str) -> LaunchError | OSError | None:
        """Return why a file could not be written when its turn came last."""
        return self._failed.get(key)

    def pop_error(self) -> str:
        """Return why something could not be written since the last call, or nothing."""
        with self._lock:
            problem, self._problem = self._problem, ""
        return problem

    def _write_all(self) -> None:
        while (key := self._next()) is not None:
            try:
                self._write(key)
            except Exception as error:  # noqa: BLE001  # It is raised again where it is seen.
                self._fault = error

    def _next(self) -> str | None:
        with self._lock:
            key = next(iter(self._dirty), None)
            if key is None:
                self._is_writing = False
            else:
                del self._dirty[key]
            return key

    def _write(self, key: str) -> None:
        data = self._content(key)
        try:
            if data is not None:
                self._folder.write(key, data)
        except (LaunchError, OSError) as error:
            with self._lock:
                self._failed[key], self._problem = error, str(error)
        else:
            with self._lock:
                self._failed.pop(key, None)
