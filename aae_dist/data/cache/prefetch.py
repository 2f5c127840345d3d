"""Remote shards fetched ahead of training, in the order in which it needs them."""

import threading
import time
from collections.abc import Callable
from typing import Self

from aae_dist.data.cache.shard_cache import ShardCache
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.data.format.reader import OpenShards
from aae_dist.data.order.order import SampleOrder
from aae_dist.data.order.shard_schedule import Schedule, check_cache
from aae_dist.errors import DataError, ShardError
from aae_dist.storage import is_remote

_THREADS = 4
_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 5.0


class ShardPrefetcher:
    """Keeps the cache ahead of one rank, and lets go of shards that the rank is done with.

    Args:
        cache: The node's cache; from now on it drops first what the node needs last.
        manifest: The shards.
        schedule: What the node needs when.
        lanes: The lanes of this rank.
        shards: The rank's open shards.
        position: Where training begins.
    """

    def __init__(
        self,
        cache: ShardCache,
        manifest: Manifest,
        schedule: Schedule,
        lanes: range,
        shards: OpenShards,
        position: int,
    ) -> None:
        self._cache, self._manifest, self._schedule = cache, manifest, schedule
        self._lanes, self._shards = lanes, shards
        cache.next_use = schedule.next_use
        # Looking for the images' shape has left a shard or two open.
        shards.release_all(but=schedule.needed_now(lanes))
        self._ahead = schedule.ahead(lanes)
        self._lock = threading.Lock()
        self._moved = threading.Condition(threading.Lock())
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name="fetch ahead", daemon=True)
            for _ in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def advance(self, position: int) -> None:
        """Note that the batch at `position` is read next.

        Raises:
            Exception: What ended the fetching ahead. Training would go on without, and wait for
                each shard.
        """
        if self._error is not None:
            raise self._error
        before, self._schedule.position = self._schedule.window, position
        if self._schedule.window == before:
            return
        # The readers of a shard keep its copy in the cache.
        self._shards.release_all(but=self._schedule.needed_now(self._lanes))
        with self._moved:
            self._moved.notify_all()

    def close(self) -> None:
        """Stop; a download under way is waited for some seconds only."""
        with self._moved:
            self._closed.set()
            self._moved.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS / _THREADS)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - raised where training asks for the next batch
            self._error = error
            self._closed.set()

    def _work(self) -> None:
        while not self._closed.is_set():
            # One at a time takes room: a small shard may not overtake a large one that waits.
            with self._lock:
                use = next(self._ahead, None)
                if use is None:
                    return
                number, first, last = use
                self._wait_while_far(first)
                shard = self._manifest.shards[number]
                fetch = self._room_for(shard, first, last) if is_remote(shard.folder) else None
            if fetch is not None:
                began = time.monotonic()
                try:
                    fetch()
                except DataError as error:
                    # Whoever reads the shard meets the same error, and says so. One that all tries
                    # have failed for is not waited for once more.
                    if isinstance(error, ShardError) and error.reason == "unreachable":
                        self._shards.failed(number, error, time.monotonic() - began)

    def _wait_while_far(self, first: int) -> None:
        """Wait until training is within an epoch of the position `first`.

        The cache knows the uses of this epoch and the next one; and where all shards are cached,
        nothing else would stop the threads from running through all epochs to come.
        """
        while not self._closed.is_set() and not self._schedule.is_near(first):
            with self._moved:
                self._moved.wait(_POLL_SECONDS)

    def _room_for(self, shard: Shard, first: int, last: int) -> Callable[[], None] | None:
        """Wait for room; return what fetches the shard, None when training has passed it."""
        while not self._closed.is_set() and last > self._schedule.position:
            try:
                if fetch := self._cache.prefetch(shard, first):
                    return fetch
            except DataError:
                return None
            with self._moved:
                self._moved.wait(_POLL_SECONDS)
        return None


def lanes_of(rows: slice, slots: int) -> range:
    """Return the lanes whose rows of the global batch, `slots` each, are `rows`."""
    return range(rows.start // slots, rows.stop // slots)


def follow(
    cache: ShardCache,
    manifest: Manifest,
    shards: OpenShards,
    order: SampleOrder,
    rows: slice,
    node_rows: slice,
    position: int,
    spare_bytes: int,
) -> ShardPrefetcher:
    """Begin to fetch ahead for one rank; see `Dataset.follow`.

    Raises:
        ConfigError: The cache cannot hold what the node needs at a time.
    """
    slots = order.global_batch_size // order.lanes
    node = lanes_of(node_rows, slots)
    check_cache(order, manifest, node, position, cache.max_bytes, spare_bytes)
    schedule = Schedule(order, manifest, node, position)
    return ShardPrefetcher(cache, manifest, schedule, lanes_of(rows, slots), shards, position)
