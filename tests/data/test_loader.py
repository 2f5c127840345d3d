import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shards import write_shards

from aae_dist.config.sections.run import Data
from aae_dist.data import (
    BatchLoader,
    Dataset,
    Manifest,
    SampleOrder,
    Shard,
    open_dataset,
    open_manifest,
    rank_rows,
)
from aae_dist.data.decode import images
from aae_dist.data.index.build import index_folder
from aae_dist.data.order import resolve_window
from aae_dist.errors import DataError

GIB = 1 << 30


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_shards(tmp_path, [20, 0, 13, 1, 9])
    return opened(tmp_path)


def opened(folder: Path, **options: Any) -> Dataset:
    settings = Data.model_validate({"train": str(folder), **options})
    return open_dataset(settings.train, settings)


def order_of(dataset: Dataset, **options: object) -> SampleOrder:
    settings: dict = {"seed": 1, "global_batch_size": 16, "lanes": 8, **options}
    return SampleOrder(dataset.manifest.counts, **settings)


def num_threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_batches_are_those_of_the_plan(dataset: Dataset) -> None:
    order = order_of(dataset)
    with BatchLoader(dataset, order, slice(0, 16), num_steps=7) as loader:
        batches = list(loader)
    assert len(batches) == 7
    position = 0
    for batch in batches:
        plan = order.batch(position)
        images, labels = dataset.read(plan.indices[plan.valid])
        assert torch.equal(batch.images[batch.valid], images)
        assert torch.equal(batch.labels[batch.valid], labels)
        assert not batch.images[~batch.valid].any()
        assert (batch.labels[~batch.valid] == -1).all()
        assert batch.valid.tolist() == plan.valid.tolist()
        assert batch.plan.num_valid == plan.num_valid
        position = plan.next_position


def test_masked_slots_are_not_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # They name a sample of lane 0: its shard may be one that this node never fetches.
    order, read = order_of(dataset), []
    load = dataset.load
    monkeypatch.setattr(dataset, "load", lambda rows, _: read.append(rows.tolist()) or load(rows))
    with BatchLoader(dataset, order, slice(8, 16), num_steps=order.steps_per_epoch) as loader:
        masks = [batch.valid for batch in loader]
    assert not all(mask.all() for mask in masks)
    assert [len(rows) for rows in read] == [int(mask.sum()) for mask in masks]


@pytest.mark.parametrize("window", ["full", 5])
def test_going_on_from_a_stored_position_gives_the_same_batches(
    dataset: Dataset, window: int | str
) -> None:
    order = order_of(dataset, window=window)
    with BatchLoader(dataset, order, slice(0, 16), num_steps=9) as loader:
        whole = list(loader)
    for stop in range(1, 9):
        position = whole[stop - 1].plan.next_position
        again = BatchLoader(dataset, order_of(dataset, window=window), slice(0, 16), position)
        with again as loader:
            for expected in whole[stop:]:
                got = next(loader)
                assert torch.equal(got.images, expected.images)
                assert got.plan.position == expected.plan.position


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 8])
def test_ranks_together_read_the_global_batch(dataset: Dataset, world_size: int) -> None:
    order = order_of(dataset)
    parts = []
    for rank in range(world_size):
        rows = rank_rows(rank, world_size, order.lanes, order.global_batch_size)
        with BatchLoader(dataset, order, rows, num_steps=order.steps_per_epoch) as loader:
            parts.append([batch.images[batch.valid] for batch in loader])
    steps = [torch.cat(step) for step in zip(*parts, strict=True)]
    for step, position in zip(steps, range(0, 6, 2), strict=True):
        plan = order.batch(position)
        assert torch.equal(step, dataset.read(plan.indices[plan.valid])[0])
    assert sum(map(len, steps)) == len(dataset)


def test_closing_early_ends_the_thread(dataset: Dataset) -> None:
    before = num_threads()
    loader = BatchLoader(dataset, order_of(dataset), slice(0, 16))
    next(loader)
    assert num_threads() == before + 1
    loader.close()
    loader.close()
    assert num_threads() == before
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("decoded", ["none", "memory"])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_bad_sample_leaves_a_hole_and_moves_no_other(
    tmp_path: Path, threads: int, decoded: str
) -> None:
    write_shards(tmp_path / "good", [20, 0, 13, 1, 9])
    write_shards(tmp_path / "bad", [20, 0, 13, 1, 9], bad={5, 33})
    good, bad = (opened(tmp_path / name, decoded=decoded) for name in ("good", "bad"))
    order = order_of(good)
    loaders = (
        BatchLoader(d, order, slice(0, 16), num_steps=7, threads=threads) for d in (good, bad)
    )
    with next(loaders) as whole, next(loaders) as holed:
        for expected, got in zip(whole, holed, strict=True):
            holes = {slot for slot in range(16) if expected.plan.indices[slot] in (5, 33)}
            is_hole = torch.tensor([slot in holes for slot in range(16)])
            counted = is_hole & expected.valid
            assert torch.equal(got.valid, expected.valid & ~is_hole)
            assert torch.equal(got.images[~is_hole], expected.images[~is_hole])
            assert torch.equal(got.labels[~is_hole], expected.labels[~is_hole])
            assert not got.images[is_hole].any()
            assert got.num_valid == expected.num_valid - int(counted.sum())
            assert [one.slot for one in got.bad] == counted.nonzero().flatten().tolist()
            for one in got.bad:
                names = {5: ("000.tar", 5, "000005"), 33: ("003.tar", 0, "000033")}
                number = int(got.plan.indices[one.slot])
                assert (one.shard, one.sample, one.key) == names[number]
                assert (one.reason, one.shard_samples) == ("image", 0)
                assert "not a PNG" in one.detail


def test_a_shard_that_cannot_be_used_leaves_holes_for_all_its_samples(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [20, 0, 13, 1, 9])
    index_folder(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:5000])
    paths[3].unlink()
    dataset = opened(tmp_path, decoded="none")
    order = order_of(dataset)
    with BatchLoader(dataset, order, slice(0, 16), num_steps=3) as loader:
        bad = [one for batch in loader for one in batch.bad]
    assert {(one.shard, one.reason, one.shard_samples) for one in bad} == {
        ("002.tar", "shard size", 13),
        ("003.tar", "shard missing", 1),
    }
    assert sorted(one.sample for one in bad) == sorted([*range(13), 0])


class Failing(Dataset):
    """Fails for good at one sample, as when the disk of the cache is full."""

    fails_at = -1

    def load(self, indices: Any, workers: Any = None) -> Any:
        if self.fails_at in indices:
            raise DataError("no space left")
        return super().load(indices, workers)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_an_error_of_the_thread_is_raised_where_the_batch_was_wanted(
    tmp_path: Path, threads: int
) -> None:
    write_shards(tmp_path, [8])
    dataset = Failing(open_manifest(str(tmp_path)), Data(train=str(tmp_path)))
    dataset.fails_at = 5
    order = order_of(dataset, global_batch_size=1, lanes=1)
    bad_step = [order.batch(p).indices[0] for p in range(8)].index(5)
    with BatchLoader(dataset, order, slice(0, 1), threads=threads) as loader:
        for _ in range(bad_step):
            next(loader)
        with pytest.raises(DataError, match="no space left"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)


def test_what_was_prepared_and_not_taken_does_not_count(dataset: Dataset) -> None:
    order = order_of(dataset)
    with BatchLoader(dataset, order, slice(0, 16), prefetch=4) as loader:
        taken = next(loader)
    assert taken.plan.next_position == 2
    assert order.samples_seen(taken.plan.next_position) == 16


@pytest.mark.parametrize(
    ("setting", "num_bytes", "window"),
    [
        (None, 4 * GIB, "full"),
        (None, 4 * GIB + 10, 4 * 50),
        (300, GIB, 300),
        ("full", 10**13, "full"),
    ],
)
def test_the_window_is_the_whole_epoch_up_to_4_gib(
    setting: object, num_bytes: int, window: object
) -> None:
    shards = tuple(Shard("/", f"{n}.tar", 50, num_bytes // 10) for n in range(10))
    settings = Data.model_validate({"train": "x", "shuffle_window": setting})
    assert resolve_window(settings, Manifest(shards)) == window


def test_packed_shards_count_as_what_they_unpack_to() -> None:
    settings = Data(train="x")
    for suffix, window in ((".tar", "full"), (".tar.gz", 200)):
        shards = tuple(Shard("/", f"{n}{suffix}", 50, (2 << 30) // 10) for n in range(10))
        assert resolve_window(settings, Manifest(shards)) == window


def test_a_batch_passes_few_frames_from_the_loader_to_the_decoder(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[str] = []
    decode_pngs = images.decode_pngs

    def recorded(*arguments: object) -> object:
        stack = traceback.extract_stack()[:-1]
        frames[:] = [frame.name for frame in stack if "aae_dist/data/" in frame.filename]
        return decode_pngs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "decode_pngs", recorded)
    with BatchLoader(dataset, order_of(dataset), slice(0, 16), num_steps=1) as loader:
        next(loader)
    assert {"read_batch", "load", "decode_rows", "decode_images"} <= set(frames)
    assert len(frames) <= 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_on_the_gpu(dataset: Dataset) -> None:
    order = order_of(dataset)
    with BatchLoader(dataset, order, slice(0, 16), num_steps=3, device="cuda") as loader:
        for batch in loader:
            assert batch.images.is_cuda
            expected, _ = dataset.read(np.asarray(batch.plan.indices))
            assert torch.equal(batch.images.cpu(), expected)
