"""SIGKILL at each phase boundary and in each stage of a save: bit-equal afterwards."""

import time
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, assert_ledger_exact, litter
from helpers.faulty import PACE, SAVE_POINTS, STEP_POINTS, Fault
from helpers.fleet import finish, fleet

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, BATCH, EVERY = 16, 48, 4
NOTICE_SECONDS = 5.0


def items(folder: Path, name: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        f"train.log_every_steps={EVERY}",
        "checkpoint.every_steps=4",
        "checkpoint.keep=2",
        "data.validation=null",
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *items(folder, "whole"))
    return f"{folder}/whole"


def kill_and_resume(folder: Path, whole: str, point: str, step: int, rank: int) -> float:
    """Kill one rank at a point, start again, compare; return the seconds until all had ended."""
    name = f"{point}-{rank}"
    mark = folder / f"{name}.mark"
    fault = Fault("kill", point, step, rank, str(mark))
    # Slow steps, so that the save before the kill is done.
    with fleet(folder, *items(folder, name), fault=fault, **{PACE: "0.1"}) as broken:
        while not mark.exists():
            assert any(p.is_alive() for p in broken.processes), broken.text()[-3000:]
            time.sleep(0.005)
        struck = time.monotonic()
        codes = broken.end()
        took = time.monotonic() - struck
        assert codes[rank] == -9
        assert codes[1 - rank] not in (0, 4), broken.text()[-2000:]
        assert not broken.killed
    log = finish(folder, *items(folder, name))
    uri = f"{folder}/{name}"
    assert ("resuming" in log) == (step > 4)
    assert_bit_equal(uri, whole, STEPS)
    assert_ledger_exact(uri, BATCH, EVERY, STEPS)
    return took


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_at_each_phase_boundary(rank: int, tmp_path: Path, whole: str, row) -> None:
    line = row(
        f"1{'ab'[rank]}",
        f"SIGKILL of rank {rank} at {len(STEP_POINTS)} phase boundaries of a step",
        "peers end at once; the same command ends bit-equal, each sample once",
    )
    seconds = [kill_and_resume(tmp_path, whole, point, 9, rank) for point in STEP_POINTS]
    line.seen.append(f"{len(seconds)} of {len(STEP_POINTS)} bit-equal")
    line.seen.append(f"peers ended within {max(seconds):.1f} s")
    assert max(seconds) < NOTICE_SECONDS


def test_rank_0_killed_in_each_stage_of_a_save(tmp_path: Path, whole: str, row) -> None:
    line = row(
        "1c",
        f"SIGKILL of rank 0 in {len(SAVE_POINTS)} stages of a save",
        "a half checkpoint is never used; bit-equal",
    )
    for point in SAVE_POINTS:
        kill_and_resume(tmp_path, whole, point, 12, 0)
    line.seen.append(f"{len(SAVE_POINTS)} of {len(SAVE_POINTS)} bit-equal")
    left = litter(tmp_path)
    if left:
        line.seen.append(f"{len(left)} temporary files left (swept after 10 min)")
    assert len(left) <= len(SAVE_POINTS)
