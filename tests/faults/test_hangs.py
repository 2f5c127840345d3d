"""Ranks that hang, crash or run out of memory: named, ended in time, and the run goes on."""

import signal
import time
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal
from helpers.faulty import Fault
from helpers.fleet import finish, fleet

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, LIMIT = 60, 8.0


def items(folder: Path, name: str, *more: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=20",
        "checkpoint.every_steps=20",
        "data.validation=null",
        f"launch.hang_timeout_seconds={LIMIT}",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *items(folder, "whole"))
    return f"{folder}/whole"


@pytest.mark.parametrize(
    ("number", "action", "what", "words", "code"),
    [
        ("5b", "hang", "rank 1 sleeps forever in a step", "rank 1: no progress for", 1),
        ("5c", "stop", "SIGSTOP of rank 1 forever", "rank 1: no heartbeat", -9),
        ("6", "gil", "rank 1 never releases the GIL", "rank 1: no heartbeat", 1),
    ],
)
def test_a_hung_rank_is_named_and_ended(
    number: str, action: str, what: str, words: str, code: int, tmp_path: Path, whole: str, row
) -> None:
    line = row(
        number,
        what,
        f"reported after {LIMIT / 2:.0f} s, terminated after {LIMIT:.0f} s, all stacks in the log; "
        "bit-equal",
    )
    fault = Fault(action, "discriminator.before", 30, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault) as broken:
        while not Path(fault.mark).exists():
            assert any(p.is_alive() for p in broken.processes), broken.text()[-3000:]
            time.sleep(0.01)
        struck = time.monotonic()
        codes = broken.end(120, grace=10)
        took = time.monotonic() - struck
    log = broken.text()
    assert codes[0] == 1, log[-3000:]
    assert codes[1] == code
    assert words in log
    assert "exits, to restart from the newest checkpoint" in log
    assert "most recent call first" in log
    line.seen.append(f"all ranks ended after {took:.0f} s")
    assert took < 4 * LIMIT + 15
    finish(tmp_path, *items(tmp_path, "run"))
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)


def test_a_rank_paused_for_a_short_while_goes_on(tmp_path: Path, whole: str, row) -> None:
    row("5a", "SIGSTOP of rank 1 for 3 s", "nothing is restarted, the pause counts as a stall")
    fault = Fault("stop", "generator.reduced", 30, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault) as paused:
        while not Path(fault.mark).exists():
            time.sleep(0.01)
        time.sleep(3)
        paused.signal(signal.SIGCONT, 1)
        assert paused.end(150) == [0, 0], paused.text()[-3000:]
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)


@pytest.mark.parametrize(
    ("number", "action", "what", "words", "code"),
    [
        ("7a", "segv", "SIGSEGV in rank 1", "", -signal.SIGSEGV),
        ("7b", "exit", "os._exit(7) in rank 1", "", 7),
        ("7c", "memory", "rank 1 runs out of memory (RLIMIT_AS)", "not enough memory (", 2),
        ("7d", "fail", "an exception in rank 1", "RuntimeError: a fault of the model", 1),
    ],
)
def test_a_rank_that_dies_in_any_way(
    number: str, action: str, what: str, words: str, code: int, tmp_path: Path, whole: str, row
) -> None:
    line = row(number, what, "peers end at once; the same command ends bit-equal")
    fault = Fault(action, "reconstruction.reduced", 30, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault) as broken:
        while not Path(fault.mark).exists():
            assert any(p.is_alive() for p in broken.processes), broken.text()[-3000:]
            time.sleep(0.01)
        struck = time.monotonic()
        codes = broken.end(120)
        line.seen.append(f"peers ended within {time.monotonic() - struck:.1f} s")
    assert codes[1] == code, broken.text()[-3000:]
    assert codes[0] not in (0, 4)
    assert not broken.killed
    assert words in broken.text()
    assert "aae-dist: another rank ended or cannot be reached (" in broken.text()
    assert "please report it" not in broken.text() or code == 1
    finish(tmp_path, *items(tmp_path, "run"))
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)
