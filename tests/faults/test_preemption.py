"""SIGTERM: a checkpoint at the next step boundary, exit code 4; a second one ends at once."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, litter
from helpers.faulty import PACE, Fault
from helpers.fleet import finish, fleet
from helpers.runs import command, run, start

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, GRACE_SECONDS = 200, 30.0
PACED = {PACE: "0.05"}
"""Ranks agree about once a second; the run must not be over before."""


def items(folder: Path, name: str, *more: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=50",
        "checkpoint.every_seconds=null",
        "data.validation=null",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *items(folder, "whole"))
    return f"{folder}/whole"


@pytest.mark.parametrize(
    ("number", "point", "rank"),
    [("8a", "discriminator.reduced", 0), ("8b", "reconstruction.before", 1)],
)
def test_sigterm_in_the_middle_of_a_step(
    number: str, point: str, rank: int, tmp_path: Path, whole: str, row
) -> None:
    line = row(
        number,
        f"SIGTERM to rank {rank} alone, in the middle of a step",
        "all ranks save after that step or within a second, exit code 4, bit-equal",
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    more = {**PACED, "TMPDIR": str(temporary)}
    fault = Fault("term", point, 90, rank, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault, **more) as stopped:
        while not Path(fault.mark).exists():
            assert any(p.is_alive() for p in stopped.processes), stopped.text()[-3000:]
            time.sleep(0.005)
        struck = time.monotonic()
        codes = stopped.end(120)
        took = time.monotonic() - struck
    assert codes == [4, 4], stopped.text()[-3000:]
    assert took < GRACE_SECONDS
    assert "with a checkpoint of that step" in stopped.text()
    line.seen.append(f"ended within {took:.1f} s")
    log = finish(tmp_path, *items(tmp_path, "run"))
    assert "resuming" in log
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)
    assert not litter(tmp_path)
    assert list(temporary.iterdir()) == []


def test_sigterm_soon_after_a_resume(tmp_path: Path, whole: str, row) -> None:
    row("8g", "SIGTERM to rank 1 ten steps after a resume", "again exit code 4, bit-equal")
    step = 90
    for number in range(2):
        fault = Fault("term", "reconstruction.before", step, 1, str(tmp_path / f"mark{number}"))
        with fleet(tmp_path, *items(tmp_path, "run"), fault=fault, **PACED) as stopped:
            assert stopped.end(120) == [4, 4], stopped.text()[-3000:]
        # The ranks agree on the signal once a second: up to 100 steps later.
        step = 10 + int(max((tmp_path / "run" / "checkpoints").glob("step-*")).name[5:])
    assert "resuming" in stopped.text()
    finish(tmp_path, *items(tmp_path, "run"))
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)


def test_sigterm_in_the_middle_of_a_save(tmp_path: Path, whole: str, row) -> None:
    row("8c", "SIGTERM to rank 0 in the middle of a save", "exit code 4, bit-equal")
    more = ["checkpoint.every_steps=80"]
    fault = Fault("term", "model", 80, 0, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run", *more), fault=fault, **PACED) as stopped:
        assert stopped.end(150) == [4, 4], stopped.text()[-3000:]
    finish(tmp_path, *items(tmp_path, "run", *more))
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)


def test_a_second_sigterm_ends_at_once(tmp_path: Path, whole: str, row) -> None:
    row(
        "8d", "a second SIGTERM while a rank hangs after the first", "ends at once, bit-equal later"
    )
    fault = Fault("hang", "generator.before", 90, 1, str(tmp_path / "mark"))
    with fleet(tmp_path, *items(tmp_path, "run"), fault=fault, **PACED) as stopped:
        while not Path(fault.mark).exists():
            assert any(p.is_alive() for p in stopped.processes), stopped.text()[-3000:]
            time.sleep(0.005)
        stopped.signal(signal.SIGTERM)
        time.sleep(2.5)
        assert all(p.is_alive() for p in stopped.processes)
        struck = time.monotonic()
        stopped.signal(signal.SIGTERM)
        # Rank 0 waits in a collective, where Python's handlers do not run: a thread ends it.
        # The rank that ends later may see first that its peer is gone, and end with 1.
        codes = stopped.end(20)
        assert set(codes) <= {-signal.SIGTERM, 128 + signal.SIGTERM, 1}
        assert codes != [1, 1]
        assert time.monotonic() - struck < 2
    finish(tmp_path, *items(tmp_path, "run"))
    assert_bit_equal(f"{tmp_path}/run", whole, STEPS)


def test_sigterm_to_torchrun_and_all_its_processes(tmp_path: Path, whole: str, row) -> None:
    line = row(
        "8e",
        "SIGTERM to torchrun's whole process group",
        "its ranks save and end with code 4 (torchrun itself says 1), bit-equal",
    )
    log = tmp_path / "log.txt"
    process = start(command(*items(tmp_path, "run"), "train.steps=100000", ranks=2), log)
    try:
        until = time.monotonic() + 200
        while "step" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        struck = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(60)
        took = time.monotonic() - struck
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(log.read_text()[-3000:]) from None
    text = log.read_text()
    assert "with a checkpoint of that step" in text, text[-3000:]
    assert code != 0
    assert took < GRACE_SECONDS
    line.seen.append(f"ended within {took:.1f} s")


def test_a_closed_terminal_leaves_a_checkpoint(tmp_path: Path, row) -> None:
    line = row(
        "8h",
        "the terminal of a run is closed (SIGHUP, and every line printed then fails)",
        "a checkpoint at the next step boundary, exit code 4; the same command resumes",
    )
    words = command(*items(tmp_path, "run", "launch.kind=local"), "train.log_every_steps=1")
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update({**PACED, "OMP_NUM_THREADS": "1"})
        os.execvp(words[0], words)
    shown = b""
    while b"samples/s" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    struck = time.monotonic()
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 4
    assert any(path.name == "MANIFEST.json" for path in (tmp_path / "run").rglob("*"))
    line.seen.append(f"ended within {time.monotonic() - struck:.1f} s")
    log = tmp_path / "log.txt"
    assert run(command(*items(tmp_path, "run", "launch.kind=local")), log, timeout=300) == 0
    assert "resuming" in log.read_text()
