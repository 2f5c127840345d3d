"""Bounds on the memory of this process that its threads share."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Releasable(Protocol):
    """Something that holds memory and can drop it."""

    def release(self) -> None:
        """Drop what is held."""


class MemoryBudget:
    """Bytes for work in progress: who wants more than is left waits; one alone may take more."""

    def __init__(self, num_bytes: int) -> None:
        self._limit, self._used = num_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Hold `num_bytes` inside. A thread must not reserve twice: it could wait for itself."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + num_bytes <= self._limit)
            self._used += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used -= num_bytes
                self._changed.notify_all()


class Holders:
    """Objects that hold memory, the oldest first, of all data sets of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[weakref.ref[Releasable], int]] = {}

    def add(self, holder: Releasable, num_bytes: int) -> None:
        """Note that `holder` holds `num_bytes`, as the newest one."""
        with self._lock:
            self._held.pop(id(holder), None)
            self._held[id(holder)] = weakref.ref(holder), num_bytes

    def remove(self, holder: Releasable) -> None:
        """Note that `holder` holds nothing any more."""
        with self._lock:
            self._held.pop(id(holder), None)

    def shrink(self, num_bytes: int) -> None:
        """Release the oldest holders until all together hold at most `num_bytes`."""
        while True:
            with self._lock:
                alive = {key: held for key, held in self._held.items() if held[0]() is not None}
                self._held = alive
                if sum(size for _, size in alive.values()) <= max(0, num_bytes):
                    return
                key = next(iter(alive))
                oldest = alive.pop(key)[0]()
            if oldest is not None:
                oldest.release()

    @property
    def num_bytes(self) -> int:
        """Bytes held by all that are alive."""
        with self._lock:
            return sum(size for held, size in self._held.values() if held() is not None)
