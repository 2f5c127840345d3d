"""Every sample once an epoch: for any ranks, threads, shards, batch sizes, crashes and changes."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers.shards import write_shards
from hypothesis import HealthCheck, given, settings, strategies as st

from aae_dist.config.sections.run import Data
from aae_dist.data import Batch, BatchLoader, Dataset, SampleOrder, open_dataset, rank_rows

RANKS = (1, 2, 3, 5, 7, 8, 24)
THREADS = (0, 1, 4)
WINDOWS = ("full", 7)
QUICK = {(2, 4, "full"), (3, 1, 7), (5, 4, 7), (7, 1, "full"), (8, 0, 7), (24, 0, "full")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(RANKS, THREADS, WINDOWS)
]
LANES = 24
SHARDS = {
    "1 shard": [130],
    "8 shards, one empty": [20, 0, 31, 17, 9, 25, 16, 12],
    "37 shards, one with a single sample": [1, *([3, 4] * 18)],
}


@pytest.fixture(scope="module", params=SHARDS, ids=SHARDS)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("shards")
    write_shards(folder, SHARDS[request.param])
    data = Data(train=str(folder), decoded="none")  # so that all threads decode
    return open_dataset(data.train, data)


def order_of(dataset: Dataset, batch: int, window: int | str = "full") -> SampleOrder:
    counts = dataset.manifest.counts
    return SampleOrder(counts, seed=5, global_batch_size=batch, lanes=LANES, window=window)  # type: ignore[arg-type]


def rank_batches(
    dataset: Dataset,
    order: SampleOrder,
    rank: int,
    ranks: int,
    threads: int,
    position: int,
    steps: int | None,
) -> list[Batch]:
    """Return `steps` batches of one rank; None reads until its own batches say the epoch ends."""
    rows = rank_rows(rank, ranks, LANES, order.global_batch_size)
    read: list[Batch] = []
    with BatchLoader(dataset, order, rows, position, threads=threads) as batches:
        while len(read) != steps:
            read.append(next(batches))
            if steps is None and read[-1].plan.next_position >= order.lane_length:
                break
    return read


def ids(batch: Batch, rows: slice) -> list[int]:
    return batch.plan.indices[rows][batch.valid.numpy()].tolist()


def train(
    dataset: Dataset, order: SampleOrder, ranks: int, threads: int, position: int, steps: int | None
) -> tuple[list[list[int]], list[torch.Tensor], int]:
    """Return ids and pixels of every global batch as the ranks read it, and the new position."""
    parts = [
        rank_batches(dataset, order, rank, ranks, threads, position, steps) for rank in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1, "step counts are equal on all ranks"
    numbers, pixels = [], []
    for step in zip(*parts, strict=True):
        rows = [rank_rows(r, ranks, LANES, order.global_batch_size) for r in range(ranks)]
        numbers.append([n for batch, own in zip(step, rows, strict=True) for n in ids(batch, own)])
        pixels.append(torch.cat([batch.images[batch.valid] for batch in step]))
        assert {batch.plan.next_position for batch in step} == {step[0].plan.next_position}
        position = step[0].plan.next_position
    return numbers, pixels, position


@pytest.mark.parametrize(("ranks", "threads", "window"), CASES)
def test_global_batches_are_the_same_for_any_ranks_and_threads(
    dataset: Dataset, ranks: int, threads: int, window: int | str
) -> None:
    order = order_of(dataset, 48, window)
    expected, expected_pixels, _ = train(dataset, order, 1, 0, 0, None)
    got, pixels, position = train(dataset, order, ranks, threads, 0, None)
    assert got == expected
    assert len(got) == order.steps_per_epoch
    assert all(map(torch.equal, pixels, expected_pixels))
    assert sorted(n for step in got for n in step) == list(range(len(dataset)))
    assert position == order.lane_length


@pytest.mark.parametrize("batch", [pytest.param(24, marks=pytest.mark.slow), 72, 240])
def test_a_crash_at_every_step_loses_and_repeats_nothing(dataset: Dataset, batch: int) -> None:
    order = order_of(dataset, batch, 5)
    steps = order.steps_per_epoch
    whole, _, _ = train(dataset, order, 2, 1, 0, steps)
    for crash in range(steps):
        before, _, position = train(dataset, order, 3, 1, 0, crash)
        after, _, _ = train(dataset, order_of(dataset, batch, 5), 2, 4, position, steps - crash)
        assert before + after == whole


@given(
    legs=st.lists(
        st.tuples(st.sampled_from(RANKS), st.sampled_from([24, 48, 120, 240]), st.integers(1, 3)),
        max_size=5,
    ),
    last=st.tuples(st.sampled_from(RANKS), st.sampled_from([24, 72])),
    window=st.sampled_from(["full", 1, 6, 1000]),
)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ranks_and_batch_may_change_again_and_again_in_mid_epoch(
    dataset: Dataset,
    legs: Sequence[tuple[int, int, int]],
    last: tuple[int, int],
    window: int | str,
) -> None:
    position, seen = 0, list[int]()
    lane_length = order_of(dataset, 24).lane_length
    for ranks, batch, steps in legs:
        left = -(-(lane_length - position) // (batch // LANES))
        if left <= 0:
            break
        order = order_of(dataset, batch, window)
        numbers, _, position = train(dataset, order, ranks, 1, position, min(steps, left))
        seen += [n for step in numbers for n in step]
    if position < lane_length:
        ranks, batch = last
        left = -(-(lane_length - position) // (batch // LANES))
        order = order_of(dataset, batch, window)
        numbers, _, position = train(dataset, order, ranks, 0, position, left)
        seen += [n for step in numbers for n in step]
    assert position == lane_length
    assert sorted(seen) == list(range(len(dataset)))
