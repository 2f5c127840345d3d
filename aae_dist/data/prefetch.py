"""Items prepared ahead by a thread, or when they are wanted."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


class Prefetcher(Generic[Item]):
    """Gives the items of an iterator, of which a thread prepares some ahead.

    Args:
        items: Makes the iterator; its errors are raised by `get`.
        depth: Items prepared ahead; 0 for no thread, each item is made when it is wanted.
        name: The thread's.
    """

    def __init__(self, items: Callable[[], Iterator[Item]], depth: int, name: str) -> None:
        self._items, self._depth = items, depth
        self._closed = threading.Event()
        self._made = iter(()) if depth else items()
        self._ready: queue.Queue[Item | BaseException | None] = queue.Queue(max(1, depth))
        self._thread: threading.Thread | None = None
        if depth:
            self._thread = threading.Thread(target=self._produce, name=name, daemon=True)
            self._thread.start()

    def get(self) -> Item | None:
        """Return the next item, or None when there are no more."""
        if self._closed.is_set():
            return None
        if self._thread is None:
            return next(self._made, None)
        got = self._ready.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def close(self) -> None:
        """Stop the thread; calling again does nothing."""
        self._closed.set()
        if self._thread is not None:
            # A download under way is not waited for: the thread ends by itself after it.
            self._thread.join(_CLOSE_SECONDS)

    def _produce(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._items():
                if not self._put(item):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer
            last = error
        self._put(last)

    def _put(self, item: Item | BaseException | None) -> bool:
        """Queue `item`; return False when this was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
