"""Numbers that go wrong on one rank: a flipped bit is found and undone, a nan is skipped by all."""

from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, assert_ledger_exact, summary
from helpers.faulty import PACE, Fault
from helpers.fleet import finish, fleet
from helpers.runs import metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, BATCH = 60, 48


def items(folder: Path, name: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=10",
        "train.compare_ranks_every_steps=5",
        "checkpoint.every_steps=10",
        "data.validation=null",
    ]


def test_a_flipped_bit_is_found_and_undone(tmp_path: Path, row) -> None:
    line = row(
        "19",
        "one bit of rank 1's decoder flips",
        "found within train.compare_ranks_every_steps, never saved; rolled back, bit-equal",
    )
    finish(tmp_path, *items(tmp_path, "whole"))
    fault = Fault("flip", "generator.after", 31, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault, **{PACE: "0.05"}) as hit:
        assert hit.end(150) == [0, 0], hit.text()[-3000:]
    log = hit.text()
    assert "after step 35 the ranks no longer hold the same numbers: the " in log
    assert "differs between rank 0 and rank 1 (no majority says which one is right)" in log
    assert "rolling back to the newest checkpoint" in log
    line.seen.append("found after 4 steps")
    assert_bit_equal(f"{tmp_path}/run", f"{tmp_path}/whole", STEPS)
    assert_ledger_exact(f"{tmp_path}/run", BATCH, 10, STEPS)
    assert summary(f"{tmp_path}/run")["metrics"]["goodput/restart_seconds"] > 0


def test_a_nan_on_one_rank_is_skipped_by_all(tmp_path: Path, row) -> None:
    row(
        "18",
        "rank 1's discriminator loss is nan in one step",
        "that update is skipped by all ranks in that step, the ranks stay equal",
    )
    fault = Fault("nan", "discriminator.before", 31, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault, **{PACE: "0.05"}) as hit:
        assert hit.end(150) == [0, 0], hit.text()[-3000:]
    assert "no longer hold the same numbers" not in hit.text()
    last = metrics(f"{tmp_path}/run")[-1]
    assert last["skipped_updates/discriminator"] == 1
    assert last["skipped_updates/reconstruction"] == last["skipped_updates/generator"] == 0
