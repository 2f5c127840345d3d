"""Kills at random times until a run of 500 steps is done: bit-equal, and what it cost."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, assert_ledger_exact, summary
from helpers.faulty import PACE
from helpers.fleet import finish, fleet

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
