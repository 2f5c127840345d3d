"""Runs that must not go on as they are asked to, and listings that lag behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal
from helpers.faulty import PACE
from helpers.fleet import finish, fleet

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 60


def items(folder: Path, name: str, *more: str) -> list[str]:
    base = [f"run.storage={folder}", f"run.name={name}", f"train.steps={STEPS}"]
    return [*base, "checkpoint.every_steps=20", "data.validation=null", *more]


def test_two_commands_start_the_same_run(tmp_path: Path, row) -> None:
    row(
        "17",
        "a second command starts a live run",
        "the second ends with code 2 and names the owner",
    )
    with fleet(tmp_path, *items(tmp_path, "run"), ranks=1, **{PACE: "0.2"}) as first:
        first.wait_for("starting ")
        with fleet(tmp_path, *items(tmp_path, "run"), ranks=1) as second:
            assert second.end(60) == [2]
        assert "is being written by process" in second.text()
        assert first.end(120) == [0]


def test_a_configuration_that_is_another_run(tmp_path: Path, row) -> None:
    row("24", "the command is given again with another seed", "exit code 2 with a diff and advice")
    finish(tmp_path, *items(tmp_path, "run"), ranks=1)
    more = ["train.steps=80", "run.seed=7"]
    with fleet(tmp_path, *items(tmp_path, "run", *more), ranks=1) as other:
        assert other.end(60) == [2]
    assert "run.seed: saved 0, now 7" in other.text()
    assert "take a new run.name" in other.text()


def test_clocks_and_listings_do_not_matter(tmp_path: Path, row) -> None:
    row(
        "16",
        "files with times of 1970, and a listing that does not show the newest checkpoint yet",
        "the step in the name decides; from an older checkpoint the end is the same, bit for bit",
    )
    finish(tmp_path, *items(tmp_path / "whole", "run"), ranks=1)
    shutil.copytree(tmp_path / "whole" / "run", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:09d}")
    # Step 40, or 20: a save is left out where the one before is still under way.
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    for path in newest.iterdir():
        os.utime(path, (1, 1))
    with fleet(tmp_path, *items(tmp_path, "run"), ranks=1) as resumed:
        assert resumed.end(100) == [0], resumed.text()[-2000:]
    assert "resuming" in resumed.text()
    assert f" at step {int(newest.name[5:])} " in resumed.text()
    assert_bit_equal(f"{tmp_path}/run", f"{tmp_path}/whole/run", STEPS)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "finished"
