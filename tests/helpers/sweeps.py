"""Small sweeps of the command line, and what they leave."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aae_dist.storage import open_storage
from aae_dist.sweeps import SweepRecord, TrialRecord, read_sweep

SMALL = (
    "data.train=builtin://digits/train",
    "model={latent_dim: 2, encoder_widths: [48], decoder_widths: [48], discriminator_widths: [48]}",
    "train.global_batch_size=48",
    "train.log_every_steps=10",
    "train.steps=60",
    "checkpoint.every_steps=20",
    "launch.workers=1",
    "wandb.mode=disabled",
    "sweep.name=sweep",
    "sweep.metric=loss/reconstruction",
)
"""Overrides of a sweep whose trials take seconds and need no evaluation."""
SEEDS = "sweep.space.run.seed={grid: [0, 1, 2, 3]}"


def command(storage: object, *items: str) -> list[str]:
    """Return the command of a sweep in `storage`."""
    start = [sys.executable, "-m", "aae_dist", "tune", *SMALL, f"run.storage={storage}"]
    return [*start, *items]


def start(
    storage: object, log: Path, environment: dict[str, str], *items: str
) -> "subprocess.Popen[bytes]":
    """Start a sweep in a session of its own; its output goes to `log`.

    Its temporary folder is its own, as on a cluster, where the driver runs on another node than its
    trials: each process of this machine finds another folder under that path.
    """
    own = tempfile.mkdtemp(prefix="driver-", dir=log.parent)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": "/proc/self/cwd", **environment}
    with log.open("ab") as out:
        return subprocess.Popen(
            command(storage, *items),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=variables,
            cwd=own,
        )


def finish(process: "subprocess.Popen[bytes]", log: Path, seconds: float = 500) -> None:
    """Wait for a sweep's good end."""
    assert process.wait(seconds) == 0, log.read_text()


def wait_until_some_finished(uri: str, log: Path, count: int = 1, seconds: float = 400) -> None:
    """Return when a sweep has `count` finished trials and is not done."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if open_storage(uri).size("sweep.json") is not None:
            sweep = read_sweep(uri, histories=False)
            if sweep.counts()["finished"] >= count:
                assert sweep.state == "running", log.read_text()
                return
        time.sleep(0.3)
    raise AssertionError(f"no trial finished:\n{log.read_text()}")


def attempts(trial: TrialRecord) -> int:
    """Return how often the trial's run was started."""
    return int(json.loads(open_storage(trial.uri).read("lock.json"))["attempt"])


def restarts(uri: str) -> int:
    """Return how often processes of a sweep's trials failed and were started again."""
    return int(json.loads(open_storage(uri).read("sweep.json"))["restarts"])


def results(sweep: SweepRecord) -> dict[str, list[dict[str, float]]]:
    """Return what each trial computed, by trial: its losses, without times and speeds."""
    return {
        trial.id: [
            {k: v for k, v in record.items() if k == "step" or k.startswith("loss/")}
            for record in trial.history
        ]
        for trial in sweep.trials
    }
