"""The order of samples ("canonical lanes"): the same for any number of ranks.

The samples of an epoch form one line, the line is cut into lanes of equal length, and a global
batch takes the next few samples of every lane. Each rank has whole lanes, so the global batch never
depends on the number of ranks. The only state is one integer, the slots consumed of each lane.

Permutations of 0..n-1 are keyed and need no memory: a Feistel network with cycle walking. Only
integer operations on uint64 are used and the keys come from BLAKE2b, so no library upgrade can
change an order; golden vectors in the tests hold it fixed. Any element costs the same, whatever n
is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import numpy as np

from aae_dist.config.sections.run import Data
from aae_dist.data.format.manifest import Manifest
from aae_dist.errors import DataError

Indices = np.typing.NDArray[np.int64]
_Words = np.typing.NDArray[np.uint64]

_NUM_ROUNDS = 8  # twice as many as no measurable bias needs: BLAKE2b gives 8 keys of 8 bytes
_MIN_BITS = 6  # halves of one or two bits permute too little: sizes 3 to 7 were uneven


def round_keys(*parts: int | str) -> tuple[np.uint64, ...]:
    """Return the round keys of `parts`, for example (seed, "epoch", 3)."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return tuple(np.frombuffer(digest, "<u8"))


def permute(positions: Indices, size: int, keys: tuple[np.uint64, ...]) -> Indices:
    """Return the images of `positions`, int64, under the permutation that `keys` choose."""
    if size == 1:
        return np.zeros_like(positions)
    num_bits = max(_MIN_BITS, (size - 1).bit_length())
    every = np.arange(1 << _MIN_BITS, dtype=np.uint64)
    # Small sizes are walked for long: there each turn is a look-up in a table of all words.
    table = _encrypt(every, num_bits, keys) if num_bits == _MIN_BITS else None

    def turned(words: _Words) -> _Words:
        return _encrypt(words, num_bits, keys) if table is None else table[words]

    words = turned(np.ascontiguousarray(positions).ravel().astype(np.uint64))
    # Cycle walking: a word outside is encrypted again until it is inside. From size 33 on
    # the domain is less than twice the size, so the expected number of extra turns is below one.
    outside = np.flatnonzero(words >= np.uint64(size))
    while outside.size:
        words[outside] = turned(words[outside])
        outside = outside[words[outside] >= np.uint64(size)]
    return words.astype(np.int64).reshape(positions.shape)


def _encrypt(words: _Words, num_bits: int, keys: tuple[np.uint64, ...]) -> _Words:
    low_bits = num_bits // 2
    shift = np.uint64(low_bits)
    low_mask = np.uint64((1 << low_bits) - 1)
    high_mask = np.uint64((1 << (num_bits - low_bits)) - 1)
    low, high = words & low_mask, words >> shift
    for number, key in enumerate(keys):
        # Halves may differ in width by one bit, so they take turns instead of swapping places.
        if number % 2:
            high ^= mixed(low ^ key) & high_mask
        else:
            low ^= mixed(high ^ key) & low_mask
    return (high << shift) | low


def mixed(words: _Words) -> _Words:
    """Mix all bits into all bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


Window = int | Literal["full"]
Mask = np.typing.NDArray[np.bool_]

_SLOTS_PER_BLOCK = 8192  # computed at once: 0.1 us per sample, not 1 us as for a small batch
_FULL_SHUFFLE_BYTES = 4 << 30
_UNPACKED_FACTOR = 4  # assumed size of a .tar.gz unpacked; a full shuffle holds all so
_WINDOW_SHARDS = 4


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one global batch, in lane-major order."""

    position: int
    """Slots of each lane consumed before this batch, since the start of training."""
    next_position: int
    """Slots of each lane consumed after this batch: the position that a checkpoint stores."""
    epoch: int
    indices: Indices
    """Sample numbers in manifest order, int64 [G]; a masked slot repeats a valid sample."""
    valid: Mask
    """False in slots without a sample, at the end of an epoch; bool [G]."""

    @property
    def num_valid(self) -> int:
        """Samples that count in this global batch, over all ranks; at least one."""
        return int(self.valid.sum())


@dataclass(frozen=True)
class _Epoch:
    number: int
    shards: Indices  # shard numbers in their order on the epoch's line
    line_ends: Indices  # running total of their sample counts


@dataclass(frozen=True)
class _Block:
    """Several consecutive batches of one epoch, from `offset` slots on."""

    epoch: int
    offset: int
    indices: Indices
    valid: Mask

    def holds(self, epoch: int, offset: int, num_slots: int) -> bool:
        ahead = offset - self.offset
        return epoch == self.epoch and 0 <= ahead <= self.indices.shape[1] - num_slots


class SampleOrder:
    """The order of all epochs, a pure function of the arguments.

    Args:
        counts: Samples of every shard, in manifest order.
        seed: of all permutations, `run.seed`.
        global_batch_size: Samples per step, over all ranks; a multiple of `lanes`.
        lanes: Streams that the line of an epoch is cut into; at least one per rank.
        window: Samples shuffled together in a lane, or "full" for one permutation of the epoch.

    Raises:
        DataError: There are no samples.
    """

    def __init__(
        self,
        counts: Sequence[int] | Indices,
        *,
        seed: int,
        global_batch_size: int,
        lanes: int,
        window: Window = "full",
    ) -> None:
        assert global_batch_size % lanes == 0, (global_batch_size, lanes)
        self.seed, self.lanes, self.window = seed, lanes, window
        self.global_batch_size = global_batch_size
        self.counts: Indices = np.asarray(counts, np.int64)
        self.num_samples = int(self.counts.sum())
        if self.num_samples == 0:
            raise DataError(
                f"No samples in {len(self.counts)} shards; give shards that hold at least one."
            )
        self._shard_starts = np.cumsum(self.counts) - self.counts
        self._slots = global_batch_size // lanes
        self._epoch: _Epoch | None = None
        self._block: _Block | None = None

    @property
    def lane_length(self) -> int:
        """Slots of each lane in one epoch; some lanes may lack a sample for the last one."""
        return -(-self.num_samples // self.lanes)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch, the shorter last one included."""
        return -(-self.num_samples // self.global_batch_size)

    def samples_seen(self, position: int) -> int:
        """Return the number of samples, masked slots not counted, before `position`."""
        epoch, offset = divmod(position, self.lane_length)
        return epoch * self.num_samples + min(self.lanes * offset, self.num_samples)

    def batch(self, position: int) -> BatchPlan:
        """Return the global batch that begins after `position` slots of every lane.

        A batch never spans two epochs: the last one of an epoch has masked slots instead, so every
        rank takes the same number of steps. The cost does not depend on the position.
        """
        epoch, offset = divmod(position, self.lane_length)
        end = min(offset + self._slots, self.lane_length)
        indices, valid = self._lane_slots(epoch, offset)
        flat_valid = valid.flatten()
        flat = np.where(flat_valid, indices.ravel(), indices.ravel()[flat_valid.argmax()])
        return BatchPlan(position, epoch * self.lane_length + end, epoch, flat, flat_valid)

    def shard_permutation(self, epoch: int) -> tuple[Indices, Indices]:
        """Return shard numbers in their order on an epoch's line, and the end of each on it."""
        keys = round_keys("order", self.seed, epoch, "shards")
        shards = permute(np.arange(len(self.counts), dtype=np.int64), len(self.counts), keys)
        return shards, np.cumsum(self.counts[shards])

    def with_window(self, window: Window) -> "SampleOrder":
        """Return the same order with another window."""
        return SampleOrder(
            self.counts,
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            lanes=self.lanes,
            window=window,
        )

    def _lane_slots(self, epoch: int, offset: int) -> tuple[Indices, Mask]:
        """Return indices and validity, [lanes, slots], cut out of a block of batches."""
        block = self._block
        if block is None or not block.holds(epoch, offset, self._slots):
            ahead = self._slots * max(1, _SLOTS_PER_BLOCK // self.global_batch_size)
            num_slots = max(self._slots, min(ahead, self.lane_length - offset))
            block = _Block(epoch, offset, *self._compute(epoch, offset, num_slots))
            self._block = block
        cut = slice(offset - block.offset, offset - block.offset + self._slots)
        return block.indices[:, cut], block.valid[:, cut]

    def _compute(self, epoch: int, offset: int, num_slots: int) -> tuple[Indices, Mask]:
        starts, ends = self.lane_bounds
        places = starts[:, None] + np.arange(offset, offset + num_slots, dtype=np.int64)
        valid = places < ends[:, None]
        indices = np.zeros_like(places)
        if self.window == "full":
            keys = round_keys("order", self.seed, epoch, "full")
            indices[valid] = permute(places[valid], self.num_samples, keys)
        else:
            shuffled = [
                self._in_windows(epoch, lane, row[mask])
                for lane, (row, mask) in enumerate(zip(places, valid, strict=True))
            ]
            indices[valid] = self._line_to_samples(epoch, np.concatenate(shuffled))
        return indices, valid

    @cached_property
    def lane_bounds(self) -> tuple[Indices, Indices]:
        """First place and end of every lane on the line, int64 [lanes] each."""
        # Python integers: lane * num_samples may pass 2**63 for absurd but legal inputs.
        cuts = [lane * self.num_samples // self.lanes for lane in range(self.lanes + 1)]
        return np.array(cuts[:-1], np.int64), np.array(cuts[1:], np.int64)

    def _in_windows(self, epoch: int, lane: int, places: Indices) -> Indices:
        """Permute line places of one lane (consecutive, int64 [n]) inside their windows."""
        assert isinstance(self.window, int)
        starts, ends = self.lane_bounds
        start, length = int(starts[lane]), int(ends[lane] - starts[lane])
        pieces = [places[:0]]
        first, last = (int(places[0]) - start, int(places[-1]) - start) if places.size else (0, -1)
        for window in range(first // self.window, last // self.window + 1):
            low = window * self.window
            size = min(self.window, length - low)
            inside = places[max(0, low - first) : low + size - first] - (start + low)
            keys = round_keys("order", self.seed, epoch, "window", lane, window)
            pieces.append(start + low + permute(inside, size, keys))
        return np.concatenate(pieces)

    def _line_to_samples(self, epoch: int, places: Indices) -> Indices:
        """Return the sample numbers at `places` of the epoch's line of permuted shards."""
        line = self._epoch
        if line is None or line.number != epoch:
            line = _Epoch(epoch, *self.shard_permutation(epoch))
            self._epoch = line
        nth = np.searchsorted(line.line_ends, places, side="right")
        shard = line.shards[nth]
        return self._shard_starts[shard] + places - (line.line_ends[nth] - self.counts[shard])


def rank_rows(rank: int, world_size: int, lanes: int, global_batch_size: int) -> slice:
    """Return the rows of the global batch that `rank` trains on: those of its whole lanes.

    `global_batch_size` rows are `lanes` streams of equal length, shared by `world_size` ranks.
    Shares differ by one lane at most when `world_size` does not divide `lanes`.
    """
    slots = global_batch_size // lanes
    return slice(rank * lanes // world_size * slots, (rank + 1) * lanes // world_size * slots)


def resolve_window(settings: Data, manifest: Manifest) -> Window:
    """Return the samples shuffled together in a lane, or "full".

    Args:
        settings: the `data` section; its `shuffle_window` wins.
        manifest: without one, full for data of up to 4 GiB, else four average shards.
    """
    if settings.shuffle_window is not None:
        return settings.shuffle_window
    packed = sum(shard.bytes for shard in manifest.shards if not shard.name.endswith(".tar"))
    if manifest.num_bytes + (_UNPACKED_FACTOR - 1) * packed <= _FULL_SHUFFLE_BYTES:
        return "full"
    return max(1, _WINDOW_SHARDS * manifest.num_samples // len(manifest.shards))
