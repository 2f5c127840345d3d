"""When a node needs which shards, computed from the order alone."""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aae_dist.data.cache.shard_cache import copy_bytes, url_digest
from aae_dist.data.format.manifest import Manifest
from aae_dist.data.order.order import SampleOrder
from aae_dist.data.order.permutation import Indices
from aae_dist.errors import ConfigError
from aae_dist.storage import is_remote

_EPOCHS_CHECKED = 8
_OVERHEAD_BYTES = 64 << 10
"""The cache's directory itself with some hundred names, and its lock."""


@dataclass(frozen=True)
class Uses:
    """Shards with the range of positions in which each is needed, sorted by the first."""

    shards: Indices
    first: Indices
    """Position (slots of each lane since the start of training) that needs the shard first."""
    last: Indices
    """Position from which on this use is over."""


def uses_in_epoch(order: SampleOrder, lanes: range, epoch: int, start: int = 0) -> Uses:
    """Return the shards that `lanes` need in one epoch; a shard once per lane.

    A shard is needed from the first to the last window that it has a sample in, in whole batches.

    Args:
        order: The order of samples.
        lanes: Some lanes.
        epoch: Number of the epoch.
        start: Position where training starts. With another batch size than before it is no multiple
            of the new batches, which are counted from it for the rest of its epoch.
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
    start, end = order.lane_bounds(lane)
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
    """The shards that one node needs, from any position on.

    Args:
        order: The order of samples.
        manifest: The shards.
        lanes: Lanes of all ranks of this node.
        start: Position where training starts.
    """

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
        """Yield (shard, first, last) for `lanes` in the order in which they are needed, endlessly.

        Lanes without a sample (there are fewer samples than lanes) yield nothing.

        Args:
            lanes: Some of this node's lanes, for example those of one rank.
        """
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
    sizes = np.array(
        [copy_bytes(s.bytes) if is_remote(s.folder) else 0 for s in manifest.shards], np.int64
    )
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
    """Raise ConfigError when the cache cannot hold the shards that the node's lanes need at once.

    Args:
        order: The order of samples.
        manifest: The shards.
        lanes: Lanes of all ranks of this node.
        start: Position where training starts.
        max_bytes: Bound of the cache.
        reserve_bytes: Space for other data sets of this node.
    """

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
