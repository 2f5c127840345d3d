"""Remote shards downloaded ahead of training, in the order in which it needs them."""

import threading
import time
from collections.abc import Callable
from typing import Self

from aae_dist.data.cache.shard_cache import Blocked, ShardCache
from aae_dist.data.dataset import Dataset
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
    """Fills the cache ahead of one rank, and releases shards that the rank has finished.

    Args:
        cache: The node's cache; from now on it evicts first what the node needs last.
        manifest: The shards.
        shards: The rank's open shards.
        schedule: What the node needs when.
        lanes: The lanes of this rank.
    """

    def __init__(
        self,
        cache: ShardCache,
        manifest: Manifest,
        shards: OpenShards,
        schedule: Schedule,
        lanes: range,
    ) -> None:
        self._cache, self._manifest, self._schedule = cache, manifest, schedule
        self._lanes, self._shards = lanes, shards
        cache.next_use = schedule.next_use
        shards.is_planned = True
        # Probing the images' shape has left a shard or two open.
        shards.release_all(but=schedule.needed_now(lanes))
        self._ahead = schedule.ahead(lanes)
        self._lock = threading.Lock()
        self._moved = threading.Condition(threading.Lock())
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name="shards", daemon=True) for _ in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def start(
        cls,
        dataset: Dataset,
        order: SampleOrder,
        rows: slice,
        node_rows: slice,
        position: int = 0,
        reserve_bytes: int = 0,
    ) -> Self | None:
        """Return the prefetcher of one rank; None for a data set without remote shards.

        Args:
            dataset: The data set, read by one loader.
            order: The order in which training reads it.
            rows: This rank's rows of a global batch.
            node_rows: Those of all ranks of this node.
            position: Where training starts.
            reserve_bytes: Bytes of the cache that other data sets of this node need meanwhile.

        Raises:
            ConfigError: The cache cannot hold the shards that the node needs at once.
        """
        cache, manifest = dataset.cache, dataset.manifest
        if cache is None:
            return None
        slots = order.global_batch_size // order.lanes
        node = lanes_of(node_rows, slots)
        check_cache(order, manifest, node, position, cache.max_bytes, reserve_bytes)
        schedule = Schedule(order, manifest, node, position)
        return cls(cache, manifest, dataset.shards, schedule, lanes_of(rows, slots))

    def advance(self, position: int) -> None:
        """Note that the batch at `position` is read next.

        Raises:
            Exception: The error that ended the prefetching. Without it training would continue, and
                wait for each shard.
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
        """Stop; a download in progress is waited for some seconds only."""
        with self._moved:
            self._closed.set()
            self._moved.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS / _THREADS)
        self._shards.is_planned = False

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - raised where training asks for the next batch
            self._error = error
            self._closed.set()

    def _work(self) -> None:
        while not self._closed.is_set():
            # One thread at a time reserves: a small shard must not overtake a large one that waits.
            with self._lock:
                use = next(self._ahead, None)
                if use is None:
                    return
                number, first, last = use
                self._wait_while_far(first)
                shard = self._manifest.shards[number]
                download = self._reserve(shard, first, last) if is_remote(shard.folder) else None
            if download is not None:
                started = time.monotonic()
                try:
                    download()
                except DataError as error:
                    # The reader of the shard meets the same error and raises it. A shard for which
                    # all retries have failed is not tried once more.
                    if isinstance(error, ShardError) and error.reason == "unreachable":
                        self._shards.failed(number, error, time.monotonic() - started)

    def _wait_while_far(self, first: int) -> None:
        """Wait until training is within an epoch of the position `first`.

        The cache knows the uses of this epoch and the next one; and where all shards are cached,
        nothing else would stop the threads from running through all epochs to come.
        """
        while not self._closed.is_set() and not self._schedule.is_near(first):
            with self._moved:
                self._moved.wait(_POLL_SECONDS)

    def _reserve(self, shard: Shard, first: int, last: int) -> Callable[[], None] | None:
        """Wait for space; return the download, None if there is none or training has passed it."""
        while not self._closed.is_set() and last > self._schedule.position:
            try:
                reserved = self._cache.reserve(shard, first)
            except DataError:
                return None
            if not isinstance(reserved, Blocked):
                return reserved
            if reserved is not Blocked.FULL:  # cached, or another process downloads it
                return None
            with self._moved:
                self._moved.wait(_POLL_SECONDS)
        return None


def lanes_of(rows: slice, slots: int) -> range:
    """Return the lanes whose rows of the global batch, `slots` each, are `rows`."""
    return range(rows.start // slots, rows.stop // slots)
