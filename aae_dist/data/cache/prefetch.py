"""Remote shards downloaded ahead of training; when a node needs which follows from the order."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from aae_dist.data.cache.shard_cache import Blocked, ShardCache, copy_bytes, url_digest
from aae_dist.data.dataset import Dataset
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.data.format.reader import OpenShards
from aae_dist.data.order import Indices, SampleOrder
from aae_dist.errors import ConfigError, DataError, ShardError
from aae_dist.storage import is_remote

_EPOCHS_CHECKED = 8
_OVERHEAD_BYTES = 64 << 10  # the cache's directory itself with some hundred names, and its lock


@dataclass(frozen=True)
class Uses:
    """Shards with the range of positions in which each is needed, sorted by the first."""

    shards: Indices
    first: Indices  # position (slots of each lane since the start) that needs the shard first
    last: Indices  # position from which on this use is over


def uses_in_epoch(order: SampleOrder, lanes: range, epoch: int, start: int = 0) -> Uses:
    """Return the shards that `lanes` need in one epoch; a shard once per lane.

    A shard is needed from the first to the last window that it has a sample in, in whole batches.
    With another batch size than before, `start` (where training starts) is no multiple of the new
    batches, which are counted from it for the rest of its epoch.
    """
    begin = epoch * order.lane_length
    shards, line_ends = order.shard_permutation(epoch)
    if order.window == "full":
        used = np.flatnonzero(order.counts)
        return Uses(used, np.full_like(used, begin), np.full_like(used, begin + order.lane_length))
    phase = _phase(order, epoch, start)
    parts = [_in_lane(order, shards, line_ends, lane, phase) for lane in lanes]
    used, first, last = (np.concatenate(part) for part in zip(*parts, strict=True))
    by_time = np.argsort(first, kind="stable")
    return Uses(used[by_time], begin + first[by_time], begin + last[by_time])


def _phase(order: SampleOrder, epoch: int, start: int) -> int:
    """Return the offset of an epoch's batches, in slots, less than one batch."""
    begin = epoch * order.lane_length
    is_within = begin <= start < begin + order.lane_length
    return (start - begin) % (order.global_batch_size // order.lanes) if is_within else 0


def _in_lane(
    order: SampleOrder, shards: Indices, line_ends: Indices, lane: int, phase: int
) -> tuple[Indices, Indices, Indices]:
    """Return the lane's shards, and the slots from and to which it needs each."""
    # Find the shards that overlap the lane.
    start, end = (int(bounds[lane]) for bounds in order.lane_bounds)
    cut = slice(
        np.searchsorted(line_ends, start, side="right"), np.searchsorted(line_ends, end - 1) + 1
    )
    ends, inside = line_ends[cut], shards[cut]
    # Their slots of the lane.
    low = np.maximum(ends - order.counts[inside], start) - start
    high = np.minimum(ends, end) - start
    some = high > low
    # Extend them to whole windows, in which samples are shuffled.
    assert isinstance(order.window, int)
    first = low // order.window * order.window
    last = np.minimum(((high - 1) // order.window + 1) * order.window, order.lane_length)
    # Extend them to whole batches: one that spans two windows needs the shards of both.
    slots = order.global_batch_size // order.lanes
    first = np.maximum((first - phase) // slots * slots + phase, 0)
    last = np.minimum(-(-(last - phase) // slots) * slots + phase, order.lane_length)
    return inside[some], first[some], last[some]


class Schedule:
    """The shards that one node, with the lanes of all its ranks, needs from any position on."""

    def __init__(
        self, order: SampleOrder, manifest: Manifest, lanes: range, start: int = 0
    ) -> None:
        self._order, self._manifest, self._lanes = order, manifest, lanes
        self._start = start
        self._epochs: dict[int, Uses] = {}
        self._lock = threading.Lock()
        self.position = start
        """Current position of training; next uses are relative to it."""

    def next_use(self, digests: Sequence[str]) -> list[float]:
        """Return the position that needs each shard next (see `cache.NextUse`).

        This epoch and the next one are searched; a shard that neither needs is at infinity.
        """
        epoch = self.position // self._order.lane_length
        nearest = np.full(len(self._manifest.shards), np.inf)
        for uses in (self._uses(epoch + 1), self._uses(epoch)):
            ahead = uses.last > self.position
            np.minimum.at(nearest, uses.shards[ahead], uses.first[ahead].astype(np.float64))
        numbers = [self._numbers.get(digest) for digest in digests]
        return [math.inf if number is None else float(nearest[number]) for number in numbers]

    def ahead(self, lanes: range) -> Iterator[tuple[int, int, int]]:
        """Yield (shard, first, last) for `lanes` as needed, endlessly; none for empty lanes."""
        position = self.position
        epoch = position // self._order.lane_length
        while True:
            uses = uses_in_epoch(self._order, lanes, epoch, self._start)
            if not uses.shards.size:
                return
            rows = np.flatnonzero(uses.last > position)
            columns = (uses.shards[rows], uses.first[rows], uses.last[rows])
            yield from zip(*(column.tolist() for column in columns), strict=True)
            epoch += 1

    def needed_now(self, lanes: range) -> set[int]:
        """Return the shards that `lanes` need at the current position."""
        epoch = self.position // self._order.lane_length
        uses = uses_in_epoch(self._order, lanes, epoch, self._start)
        now = (uses.first <= self.position) & (self.position < uses.last)
        return set(uses.shards[now].tolist())

    def is_near(self, position: int) -> bool:
        """Return whether a position is in the current epoch, in the next one, or before."""
        length = self._order.lane_length
        return position // length <= self.position // length + 1

    @property
    def window(self) -> tuple[int, int]:
        """Current epoch and window in it; the needed shards change with them."""
        epoch, offset = divmod(self.position, self._order.lane_length)
        return epoch, 0 if self._order.window == "full" else offset // self._order.window

    def _uses(self, epoch: int) -> Uses:
        with self._lock:
            if epoch not in self._epochs:
                for old in [e for e in self._epochs if e < epoch - 1]:
                    del self._epochs[old]
                self._epochs[epoch] = uses_in_epoch(self._order, self._lanes, epoch, self._start)
            return self._epochs[epoch]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        shards = enumerate(self._manifest.shards)
        return {url_digest(shard.url): number for number, shard in shards}


def open_bytes(
    order: SampleOrder, manifest: Manifest, lanes: range, epoch: int, start: int = 0
) -> int:
    """Return the most bytes of remote shards that `lanes` can need at once in an epoch."""
    sizes = np.where(manifest.remote_bytes >= 0, copy_bytes(manifest.remote_bytes), 0)
    if order.window == "full":
        return int(sizes[order.counts > 0].sum())
    shards, line_ends = order.shard_permutation(epoch)
    # Lanes on different ranks may be a window apart, so each one's own peak counts.
    phase = _phase(order, epoch, start)
    return sum(_peak(*_in_lane(order, shards, line_ends, lane, phase), sizes) for lane in lanes)


def _peak(shards: Indices, first: Indices, last: Indices, sizes: Indices) -> int:
    # Shards that end where others start are not needed together: -1 before +1 at equal times.
    times = np.concatenate([last, first])
    changes = np.concatenate([-sizes[shards], sizes[shards]])
    running = np.cumsum(changes[np.argsort(times, kind="stable")])
    return int(running.max(initial=0))


def check_cache(
    order: SampleOrder,
    manifest: Manifest,
    lanes: range,
    start: int,
    max_bytes: int,
    reserve_bytes: int = 0,
) -> None:
    """Raise ConfigError if the cache cannot hold the shards that the node's lanes need at once."""

    def needed(some: SampleOrder) -> int:
        epoch = start // order.lane_length
        epochs = range(epoch, epoch + (1 if some.window == "full" else _EPOCHS_CHECKED))
        return (
            _OVERHEAD_BYTES
            + reserve_bytes
            + max(open_bytes(some, manifest, lanes, e, start) for e in epochs)
        )

    total = needed(order)
    if total <= max_bytes:
        return
    window = f"data.shuffle_window={order.window}"
    advice = [f"data.cache.max_bytes={total} or more"]
    smaller = max(1, order.num_samples // max(1, len(manifest.shards)))
    if order.window == "full" or smaller < order.window:
        least = needed(order.with_window(smaller))
        if least <= max_bytes:
            advice.append(f"data.shuffle_window={smaller} ({least} bytes, for a new run)")
    raise ConfigError(
        f"data.cache.max_bytes: {len(lanes)} lanes on this node with {window} keep {total} bytes "
        f"of shards open at a time, and the cache may take {max_bytes}; use " + ", or ".join(advice)
    )


_THREADS = 4
_POLL_SECONDS = 0.5
_POLL_FACTOR = 20  # a full cache is looked at for a twentieth of the time
_CLOSE_SECONDS = 5.0


class ShardPrefetcher:
    """Fills the cache ahead of one rank, and releases shards that the rank has finished."""

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
        cache.next_use = schedule.next_use  # evicts first what the node needs last
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
        """Return the prefetcher of one rank from `position` on; None without remote shards.

        `rows` of a global batch are this rank's, `node_rows` those of all ranks of this node, whose
        other data sets need `reserve_bytes` of the cache. Raises ConfigError if the cache cannot
        hold the shards that the node needs at once.
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
        """Note that the batch at `position` is read next; raise what ended the prefetching."""
        if self._error is not None:
            raise self._error  # without it training would continue, and wait for each shard
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
            began = time.monotonic()
            try:
                reserved = self._cache.reserve(shard, first)
            except DataError:
                return None
            if not isinstance(reserved, Blocked):
                return reserved
            if reserved is not Blocked.FULL:  # cached, or another process downloads it
                return None
            # To find out that the cache is full takes a second for 100,000 copies.
            with self._moved:
                self._moved.wait(max(_POLL_SECONDS, _POLL_FACTOR * (time.monotonic() - began)))
        return None


def lanes_of(rows: slice, slots: int) -> range:
    """Return the lanes whose rows of the global batch, `slots` each, are `rows`."""
    return range(rows.start // slots, rows.stop // slots)
