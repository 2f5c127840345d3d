"""Kills at random times until a run is done: bit-equal, and what it cost."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, assert_ledger_exact, summary
from helpers.faulty import PACE
from helpers.fleet import finish, fleet
from helpers.runs import command, descendants, kill_all, start

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, BATCH = 500, 48


def items(folder: Path, name: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=50",
        "checkpoint.every_steps=10",
        "data.validation=null",
    ]


def test_random_kills_until_the_end(tmp_path: Path, row) -> None:
    line = row(
        "27",
        "SIGKILL of a random rank, or of all, 1 to 8 s after the first step of each attempt",
        "the run of 500 steps ends bit-equal, each sample counted once",
    )
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    line.seen.append(f"seed {seed}")
    pace = {PACE: "0.03"}  # 15 s of steps, so that there is something to kill
    finish(tmp_path, *items(tmp_path, "whole"))
    kills = 0
    for _ in range(60):
        with fleet(tmp_path, *items(tmp_path, "run"), **pace) as attempt:
            while not any(words in attempt.text() for words in ("step ", "Result at")):
                if not any(p.is_alive() for p in attempt.processes):
                    break
                time.sleep(0.05)
            until = time.monotonic() + rng.uniform(1, 8)
            while time.monotonic() < until and all(p.is_alive() for p in attempt.processes):
                time.sleep(0.02)
            if all(p.is_alive() for p in attempt.processes):
                attempt.signal(signal.SIGKILL, *rng.choice([(0,), (1,), ()]))
                kills += 1
            codes = attempt.end()
            if codes == [0, 0]:
                break
    assert codes == [0, 0], attempt.text()[-3000:]
    assert kills > 0
    assert_bit_equal(f"{tmp_path}/run", f"{tmp_path}/whole", STEPS)
    assert_ledger_exact(f"{tmp_path}/run", BATCH, 50, STEPS)
    found = summary(f"{tmp_path}/run")["metrics"]
    line.seen.append(f"{kills} kills, goodput {found['goodput/fraction']:.2f}")
    parts = sum(v for k, v in found.items() if k.endswith("_seconds") and "/wall" not in k
                and k.startswith("goodput/"))  # fmt: skip
    assert parts == pytest.approx(found["goodput/wall_seconds"], abs=0.1)


_NO_ANSWER = "the server cannot be reached"
KILLS = int(os.environ.get("CHAOS_KILLS", "4"))


@pytest.mark.timeout(600 + 120 * KILLS)
@pytest.mark.parametrize("place", ["s3", "local"])
def test_random_kills_of_torchrun_and_its_ranks(
    tmp_path: Path, request: pytest.FixtureRequest, row, place: str
) -> None:
    line = row(
        "28a" if place == "s3" else "28b",
        f"SIGKILL of torchrun, of one of its 2 ranks, or of all, at random times; storage: {place}",
        "the same command ends bit-equal, each sample counted once",
    )
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    rng, log = random.Random(seed), tmp_path / "log.txt"
    bucket = request.getfixturevalue("s3")() if place == "s3" else str(tmp_path / "runs")
    steps, more = 900, ["checkpoint.every_steps=10", "checkpoint.keep=2", "data.validation=null"]
    items = [f"run.storage={bucket}", f"train.steps={steps}", *more, "train.log_every_steps=50"]

    def attempt(name: str, is_killed: bool) -> int | None:
        """Run the command, and kill it a while after its first step; None if it was killed."""
        log.write_text("")
        process = start(command(*items, f"run.name={name}", ranks=2), log)
        try:
            while is_killed and process.poll() is None and not _has_stepped(log):
                time.sleep(0.05)
            until = time.monotonic() + rng.uniform(0, 2)
            while process.poll() is None:
                # A run that has ended is not killed: that would test nothing.
                if is_killed and time.monotonic() > until and "Run folder" not in log.read_text():
                    _kill_some(process.pid, rng)
                    return None
                time.sleep(0.02)
        finally:
            kill_all(process)
        return process.returncode

    assert attempt("whole", False) == 0, log.read_text()[-3000:]
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        while (code := attempt(f"run{runs}", kills < KILLS)) != 0:
            text = log.read_text()
            # A run does not start if the test's own server gets no CPU for 15 s: no kill.
            assert code is None or (code == 1 and _NO_ANSWER in text), text[-3000:]
            kills += code is None
            print(f"{kills} kills, run {runs}: {log.read_text()[-120:]!r}", flush=True)
        assert_bit_equal(f"{bucket}/run{runs}", f"{bucket}/whole", steps)
        assert_ledger_exact(f"{bucket}/run{runs}", BATCH, 50, steps)
    line.seen.append(f"seed {seed}; {kills} kills over {runs} runs of {steps} steps, all bit-equal")


def _has_stepped(log: Path) -> bool:
    return any(words in log.read_text(errors="replace") for words in ("step ", "Run folder"))


def _kill_some(torchrun: int, rng: random.Random) -> None:
    """SIGKILL torchrun, one of its processes, or all of them; the others a moment later."""
    pids = descendants(torchrun)
    one = [rng.choice(pids)] if pids else [torchrun]  # it may be about to end
    rest = [torchrun, *pids]  # ranks outlive a torchrun that was killed
    for victims in (rng.choice([[torchrun], one, rest]), rest):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.5))
