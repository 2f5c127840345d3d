"""Bad samples in whole runs: holes that are counted and listed, and limits that all ranks keep."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bad_runs import train_rank
from helpers.ranks import run_ranks, single_world
from helpers.runs import final_tensors, metrics
from helpers.shards import image_of, write_shards

import aae_dist
from aae_dist.data.index.build import index_folder

pytestmark = pytest.mark.run

COUNTS = [60, 1, 90, 0, 49]
BAD = {3, 70, 71, 199}
LOST_SHARD = "001.tar"
TOLERANT = ("data.max_bad_fraction=0.1",)
EPOCHS = ("train.epochs=2", *TOLERANT)
STEPS = 2 * 9


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """200 samples: four hold no image, and a shard of one sample was lost after it was counted."""
    folder = tmp_path / "shards"
    write_shards(folder, COUNTS, bad=BAD)
    index_folder(folder)
    (folder / LOST_SHARD).unlink()
    return folder


def listed(storage: Path) -> set[tuple[str, int | None, str]]:
    text = (storage / "run" / "bad_samples.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return {(line["shard"], line["sample"], line["reason"]) for line in lines}


ALL_LISTED = {
    ("000.tar", 3, "image"),
    ("001.tar", None, "shard missing"),
    ("002.tar", 9, "image"),
    ("002.tar", 10, "image"),
    ("004.tar", 48, "image"),
}


def test_bad_samples_are_left_out_listed_and_counted(shards: Path, tmp_path: Path) -> None:
    ended = train_rank(single_world(), shards, tmp_path, EPOCHS)
    assert (ended["state"], ended["step"]) == ("finished", STEPS)
    assert any(re.match(r"warning: \d bad samples are skipped", li) for li in ended["lines"])
    assert listed(tmp_path) == ALL_LISTED
    last = metrics(str(tmp_path / "run"))[-1]
    assert last["data/bad_samples"] == 5
    assert last["samples_seen"] == 2 * (200 - 5)
    kept = final_tensors(str(tmp_path / "run"), STEPS)["state"]["bad_samples"]
    assert len(kept["entries"]) == 5
    assert kept["num_holes"] == 10


def losses(storage: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if name.startswith("loss/")}
        for record in metrics(str(storage / "run"))
    ]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_losses_are_those_of_one_rank_also_where_samples_are_bad(
    shards: Path, tmp_path: Path, size: int, row
) -> None:
    row(
        f"20{'ab'[size > 2]}",
        f"bad images and a lost shard, {size} ranks",
        "skipped, listed and counted once; losses are those of one rank",
    )
    train_rank(single_world(), shards, tmp_path / "one", EPOCHS)
    ended = run_ranks(train_rank, size, shards, tmp_path / "many", EPOCHS)
    assert {each["state"] for each in ended} == {"finished"}
    assert listed(tmp_path / "many") == ALL_LISTED
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert len(one) == len(many) == STEPS
    for expected, got in zip(one, many, strict=True):
        assert got == pytest.approx(expected, abs=1e-9)


def test_holes_do_not_change_what_the_other_samples_teach(shards: Path, tmp_path: Path) -> None:
    """A bad sample is no sample: the loss is the mean over the others of the batch."""
    whole = tmp_path / "whole"
    write_shards(whole, COUNTS)
    frozen = (
        "phases.reconstruction.optimizer.lr=1e-30",
        "phases.discriminator.optimizer.lr=1e-30",
        "phases.generator.optimizer.lr=1e-30",
    )
    train_rank(single_world(), shards, tmp_path / "holed", (*EPOCHS, *frozen))
    train_rank(single_world(), whole, tmp_path / "good", (*EPOCHS, *frozen))
    holed, good = losses(tmp_path / "holed"), losses(tmp_path / "good")
    lost = lost_by_step(tmp_path / "holed")
    assert sum(map(len, lost.values())) == 5
    run, name = aae_dist.load_run(str(tmp_path / "good" / "run")), "loss/reconstruction"
    for step in range(1, STEPS // 2 + 1):
        bad, count = lost.get(step, []), min(24, 200 - 24 * (step - 1))
        if not bad:
            assert holed[step - 1] == good[step - 1]
            continue
        images = torch.from_numpy(np.stack([image_of(number)[None] for number in bad]))
        errors = run.reconstruct(images).double() - images.double() / 255
        expected = (count * good[step - 1][name] - float(errors.square().sum()) / 2) / (
            count - len(bad)
        )
        assert holed[step - 1][name] == pytest.approx(expected, rel=1e-5)


def lost_by_step(storage: Path) -> dict[int, list[int]]:
    """Return the numbers of the samples that the first epoch lacks, by the step that lacks them."""
    starts = {f"{n:03d}.tar": sum(COUNTS[:n]) for n in range(len(COUNTS))}
    found: dict[int, list[int]] = {}
    for line in (storage / "run" / "bad_samples.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["step"], []).append(starts[entry["shard"]] + (entry["sample"] or 0))
    return found


def test_a_resumed_run_is_bit_equal_also_with_bad_samples(shards: Path, tmp_path: Path) -> None:
    world = single_world()
    train_rank(world, shards, tmp_path / "whole", EPOCHS)
    for stop_at in (1, 6, 4):
        stopped = train_rank(world, shards, tmp_path / "broken", EPOCHS, stop_at)
        assert stopped["state"] == "interrupted"
    train_rank(world, shards, tmp_path / "broken", EPOCHS)
    whole, broken = (final_tensors(str(tmp_path / n / "run"), STEPS) for n in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    for name, value in whole.items():
        equal = torch.equal(broken[name], value) if isinstance(value, torch.Tensor) else None
        assert equal or broken[name] == value, name
    texts = [(tmp_path / n / "run" / "bad_samples.jsonl").read_bytes() for n in ("whole", "broken")]
    assert texts[0] == texts[1]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("data.max_bad_samples=0", r"\d are bad, more than data\.max_bad_samples=0"),
        ("data.max_bad_fraction=0.012", r"[345] of 200 are bad, more than the 2 that"),
    ],
)
def test_all_ranks_end_at_the_same_step_with_the_same_words(
    shards: Path, tmp_path: Path, limit: str, message: str
) -> None:
    items = (*EPOCHS, limit, "checkpoint.every_steps=1")
    ended = run_ranks(train_rank, 3, shards, tmp_path, items)
    assert [each["state"] for each in ended] == ["DataError"] * 3
    assert len({each["message"] for each in ended}) == 1
    assert re.search(message, ended[0]["message"])
    assert "bad_samples.jsonl lists them" in ended[0]["message"]
    assert listed(tmp_path) < ALL_LISTED
    # With the limit raised, the same command goes on to the end.
    again = run_ranks(train_rank, 2, shards, tmp_path, EPOCHS)
    assert [each["state"] for each in again] == ["finished"] * 2
    assert listed(tmp_path) == ALL_LISTED


def test_data_that_is_all_bad_ends_the_run_soon(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [400], bad=range(1, 400))
    items = ("train.epochs=2", "data.max_bad_fraction=1")
    ended = train_rank(single_world(), tmp_path / "shards", tmp_path, items)
    assert ended["state"] == "DataError"
    assert (
        "consecutive ones are bad, more than data.max_consecutive_bad_samples=100"
        in ended["message"]
    )


@pytest.mark.distributed
def test_a_batch_without_a_good_sample_changes_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [30], bad=range(5, 30))
    phases = ("reconstruction", "discriminator", "generator")
    items = (
        "data.max_bad_fraction=1", "train.global_batch_size=2", "data.lanes=2",
        "train.ema_decay=0.9", *(f"phases.{phase}.schedule.kind=constant" for phase in phases),
    )  # fmt: skip

    def trained(steps: int) -> Path:
        storage = tmp_path / str(steps)
        arguments = (tmp_path / "shards", storage, (*items, f"train.steps={steps}"))
        for end in run_ranks(train_rank, 2, *arguments):
            assert (end["state"], end["step"]) == ("finished", steps)
        return storage / "run"

    seen = metrics(str(trained(30)))
    # A good batch, so that there is momentum, and then one without a good sample.
    good = next(n for n in range(1, 29) if _grows(seen, n) and not _grows(seen, n + 1))
    assert "loss/reconstruction" in seen[good]
    assert "loss/reconstruction" not in seen[good + 1]
    before, after = (final_tensors(str(trained(n)), n) for n in (good + 1, good + 2))
    for name, value in after.items():
        assert name == "state" or torch.equal(value, before[name]), name


def _grows(records: list[dict[str, Any]], number: int) -> bool:
    return bool(records[number]["samples_seen"] > records[number - 1]["samples_seen"])
