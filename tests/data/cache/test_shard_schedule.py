"""When shards are needed, against walking through every batch."""

from collections import defaultdict
from itertools import islice

import numpy as np
import pytest

from aae_dist.data.cache.prefetch import Schedule, check_cache, open_bytes, uses_in_epoch
from aae_dist.data.cache.shard_cache import copy_bytes, url_digest
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.data.order import SampleOrder
from aae_dist.errors import ConfigError

COUNTS = [20, 0, 13, 1, 9, 31, 2, 17, 5, 40, 11]
MANIFEST = Manifest(
    tuple(Shard("s3://bucket", f"{n}.tar", count, 1000 * count) for n, count in enumerate(COUNTS))
)


def order_of(window: int | str = 6, lanes: int = 4) -> SampleOrder:
    return SampleOrder(COUNTS, seed=3, global_batch_size=2 * lanes, lanes=lanes, window=window)


def walked(order: SampleOrder, lanes: range, epoch: int, start: int = 0) -> dict[int, list[int]]:
    """Return the positions at which each shard is read, by reading all batches of an epoch.

    Training begins at `start`.
    """
    ends = np.cumsum(order.counts)
    slots = order.global_batch_size // order.lanes
    found = defaultdict(list)
    position = max(start, epoch * order.lane_length)
    while position < (epoch + 1) * order.lane_length:
        plan = order.batch(position)
        rows = slice(lanes.start * slots, lanes.stop * slots)
        for sample in plan.indices[rows][plan.valid[rows]]:
            found[int(np.searchsorted(ends, sample, side="right"))].append(position)
        position = plan.next_position
    return found


@pytest.mark.parametrize("window", [1, 6, 7, 1000, "full"])
@pytest.mark.parametrize("lanes", [range(0, 4), range(1, 2), range(2, 4)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_shards_are_needed_when_they_are_read(window: int | str, lanes: range, epoch: int) -> None:
    order = order_of(window)
    uses = uses_in_epoch(order, lanes, epoch)
    spans = defaultdict(list)
    for shard, first, last in zip(uses.shards, uses.first, uses.last, strict=True):
        spans[int(shard)].append((first, last))
    read = walked(order, lanes, epoch)
    if window != "full":
        assert set(read) == set(spans), "nothing is fetched that is not read"
    for shard, positions in read.items():
        for position in positions:
            assert any(first <= position < last for first, last in spans[shard])
    assert list(uses.first) == sorted(uses.first)


@pytest.mark.parametrize("window", [5, 6, 7])
def test_no_batch_needs_more_room_than_the_check_allows(window: int) -> None:
    order = order_of(window)
    for lane in range(order.lanes):
        lanes = range(lane, lane + 1)
        enough = open_bytes(order, MANIFEST, lanes, 0)
        schedule = Schedule(order, MANIFEST, lanes)
        for position in range(0, order.lane_length, 2):
            schedule.position = position
            held = schedule.needed_now(lanes)
            assert held >= {n for n, at in walked(order, lanes, 0).items() if position in at}
            assert sum(copy_bytes(MANIFEST.shards[n].bytes) for n in held) <= enough


@pytest.mark.parametrize(("window", "start"), [(5, 38), (6, 1), (6, 17), (7, 5)])
def test_batches_counted_from_another_place_find_their_shards(window: int, start: int) -> None:
    # Training went on in mid-epoch with 3 slots a lane, at a position that is no multiple of 3.
    order = SampleOrder(COUNTS, seed=3, global_batch_size=12, lanes=4, window=window)
    for lane in range(4):
        lanes = range(lane, lane + 1)
        schedule = Schedule(order, MANIFEST, lanes, start)
        for epoch in (start // order.lane_length, start // order.lane_length + 1):
            enough = open_bytes(order, MANIFEST, lanes, epoch, start)
            read = walked(order, lanes, epoch, start)
            for position in sorted({at for positions in read.values() for at in positions}):
                schedule.position = position
                held = schedule.needed_now(lanes)
                assert held >= {n for n, at in read.items() if position in at}
                assert sum(copy_bytes(MANIFEST.shards[n].bytes) for n in held) <= enough


def test_positions_far_ahead_are_not_near() -> None:
    order = order_of()
    schedule = Schedule(order, MANIFEST, range(4))
    schedule.position = order.lane_length + 1
    assert schedule.is_near(0)
    assert schedule.is_near(3 * order.lane_length - 1)
    assert not schedule.is_near(3 * order.lane_length)


def test_the_schedule_continues_into_the_next_epochs() -> None:
    order = order_of()
    schedule = Schedule(order, MANIFEST, range(4))
    schedule.position = order.lane_length - 1
    ahead = list(islice(schedule.ahead(range(4)), 60))
    firsts = [first for _, first, _ in ahead]
    assert firsts == sorted(firsts)
    assert firsts[0] < order.lane_length <= firsts[-1]
    digests = [url_digest(shard.url) for shard in MANIFEST.shards]
    next_use = schedule.next_use([*digests, "somebody else's"])
    for number, when in enumerate(next_use[:-1]):
        wanted = [first for shard, first, _ in ahead if shard == number]
        assert when == (min(wanted) if wanted else np.inf)
    assert next_use[-1] == np.inf


def test_lanes_without_a_sample_need_nothing() -> None:
    order = SampleOrder([2], seed=0, global_batch_size=8, lanes=8, window=6)
    per_lane = [list(islice(_schedule_of(order).ahead(range(n, n + 1)), 3)) for n in range(8)]
    assert sorted(map(len, per_lane)) == [0] * 6 + [3] * 2


def _schedule_of(order: SampleOrder) -> Schedule:
    return Schedule(order, Manifest((Shard("s3://bucket", "0.tar", 2, 10),)), range(8))


def test_a_shard_that_is_needed_again_counts_from_its_next_use() -> None:
    order = order_of()
    schedule = Schedule(order, MANIFEST, range(4))
    uses = uses_in_epoch(order, range(4), 0)
    begin = schedule.next_use([url_digest(s.url) for s in MANIFEST.shards])
    done = int(uses.shards[uses.last.argmin()])
    schedule.position = int(uses.last.min())
    later = schedule.next_use([url_digest(MANIFEST.shards[done].url)])[0]
    assert begin[done] == 0
    assert later > schedule.position


def test_open_bytes_are_the_most_that_any_window_needs() -> None:
    for lanes in (range(0, 4), range(1, 3)):
        order = order_of(window=6)
        total = 0
        for lane in lanes:
            uses = uses_in_epoch(order, range(lane, lane + 1), 0)
            total += max(
                sum(
                    copy_bytes(MANIFEST.shards[shard].bytes)
                    for shard, first, last in zip(uses.shards, uses.first, uses.last, strict=True)
                    if first <= position < last
                )
                for position in range(order.lane_length)
            )
        assert open_bytes(order, MANIFEST, lanes, 0) == total


def test_a_cache_too_small_is_refused_with_what_would_work() -> None:
    order = order_of("full")
    with pytest.raises(ConfigError, match=r"data\.cache\.max_bytes: 4 lanes .* use data") as caught:
        check_cache(order, MANIFEST, range(4), 0, 100_000)
    text = str(caught.value)
    enough = int(text.split("data.cache.max_bytes=")[1].split()[0])
    check_cache(order, MANIFEST, range(4), 0, enough)
    with pytest.raises(ConfigError):
        check_cache(order, MANIFEST, range(4), 0, enough - 1)
    local = Manifest(tuple(Shard("/data", s.name, s.samples, s.bytes) for s in MANIFEST.shards))
    check_cache(order, local, range(4), 0, 1 << 17)
