"""Shards that changed since the checkpoint: refused in mid-epoch, taken at its end on request.

And shards that nobody has counted before.
"""

from pathlib import Path
from typing import Any

import pytest
from helpers.bad_runs import impatient_rank, train_rank
from helpers.ranks import run_ranks, single_world
from helpers.runs import final_tensors, metrics
from helpers.shards import write_shards

pytestmark = pytest.mark.run


def go(tmp_path: Path, shards: str, *items: str, **options: Any) -> dict[str, Any]:
    return train_rank(single_world(), tmp_path / shards, tmp_path, items, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "old", [30, 20])
    write_shards(tmp_path / "new", [30, 20, 43])
    return tmp_path


def test_new_shards_begin_with_an_epoch_when_they_are_accepted(folder: Path) -> None:
    assert go(folder, "old", "train.epochs=2")["step"] == 2 * 3
    refused = go(folder, "new", "train.epochs=4")
    assert refused["state"] == "CheckpointError"
    assert "50 samples then, 93 in data.train now" in refused["message"]
    assert "ends epoch 1. Set data.accept_new_shards=true" in refused["message"]
    ended = go(folder, "new", "train.epochs=4", "data.accept_new_shards=true")
    assert (ended["state"], ended["step"]) == ("finished", 2 * 3 + 2 * 4)
    records = metrics(str(folder / "run"))
    assert [r["samples_seen"] for r in records[:8]] == [24, 48, 50, 74, 98, 100, 124, 148]
    assert records[-1]["samples_seen"] == 2 * 50 + 2 * 93
    assert records[-1]["epoch"] == 4
    # Once taken, they are the run's shards: the old ones would be the new ones now.
    assert go(folder, "old", "train.epochs=5")["state"] == "CheckpointError"
    again = go(folder, "new", "train.epochs=5")
    assert (again["state"], again["step"]) == ("finished", 2 * 3 + 3 * 4)
    assert final_tensors(str(folder / "run"), 18)["state"]["samples_shift"] == 2 * (50 - 93)


def test_new_shards_are_refused_in_mid_epoch_whatever_is_asked_for(folder: Path) -> None:
    assert go(folder, "old", "train.epochs=2", stop_at=4)["state"] == "interrupted"
    refused = go(folder, "new", "train.epochs=2", "data.accept_new_shards=true")
    assert refused["state"] == "CheckpointError"
    assert "is at 33% of epoch 1, where they cannot change" in refused["message"]
    assert "train.epochs=2" in refused["message"]
    assert go(folder, "old", "train.epochs=2")["state"] == "finished"


@pytest.mark.distributed
def test_rank_0_tells_how_far_the_counting_of_shards_is(folder: Path) -> None:
    ended = run_ranks(impatient_rank, 2, folder / "new", folder, ("train.steps=1",))
    assert [each["state"] for each in ended] == ["finished"] * 2
    first, other = ([line for line in each["lines"] if "counting" in line] for each in ended)
    assert first[2].startswith("counting samples: 3/3 shards, ")
    assert other == []
