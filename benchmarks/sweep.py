"""Trials per hour under `aae-dist tune`, against the same trials one after another.

    python benchmarks/sweep.py [--trials 8] [--steps 600]

One thread a trial on both sides: two at a time in Tune, and one by one in plain processes of the
local launcher. What stopping early saves is measured by benchmarks/asha.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from aae_dist.config import dump_yaml
from aae_dist.sweeps import SweepRecord, read_sweep
from aae_dist.sweeps.plan import load_sweep

QUICK = Path(__file__).parents[1] / "configs" / "sweep" / "quick.yaml"
GOAL = 1.7
METRIC = "prior_match/sliced_wasserstein"


def overrides(folder: str, name: str, space: Mapping[str, object], steps: int) -> list[str]:
    """Return what makes of the quick sweep another one of this space, in `folder`."""
    return [
        f"sweep.name={name}",
        f"run.storage={folder}",
        f"train.steps={steps}",
        f"train.log_every_steps={steps}",
        f"sweep.metric={METRIC}",
        "sweep.max_concurrent=2",
        "wandb.mode=disabled",
        "sweep.space.prior=null",
        "sweep.space.model.latent_dim=null",
        *(f"sweep.space.{key}={json.dumps(term)}" for key, term in space.items()),
    ]


def run(command: Sequence[str]) -> float:
    """Run a command of this package, one thread a process; return its seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "aae_dist", *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return time.monotonic() - started


def tune(items: Sequence[str]) -> tuple[float, SweepRecord]:
    """Run a sweep; return its seconds and its record."""
    seconds = run(["tune", str(QUICK), *items])
    return seconds, read_sweep(load_sweep([QUICK], items).uri)


def one_by_one(folder: Path, items: Sequence[str]) -> float:
    """Train the sweep's trials in plain processes, one after another; return the seconds."""
    total = 0.0
    for trial in load_sweep([QUICK], items).trials:
        file = folder / f"{trial.id}.yaml"
        file.write_text(dump_yaml(trial.config))
        total += run(["train", str(file), "launch.kind=local", f"run.storage={folder}/plain"])
    return total


def speed(num_trials: int, steps: int) -> None:
    """Print trials per hour of both."""
    with tempfile.TemporaryDirectory() as folder:
        space = {"run.seed": {"grid": list(range(num_trials))}}
        items = overrides(folder, "speed", space, steps)
        in_tune, sweep = tune(items)
        plain = one_by_one(Path(folder), items)
    assert sweep.counts()["finished"] == num_trials
    print(f"{num_trials} trials of {steps} steps, one thread each, {os.cpu_count()} cores\n")
    print("| side | seconds | trials per hour |\n|---|---|---|")
    for name, seconds in (("aae-dist tune", in_tune), ("one after another", plain)):
        print(f"| {name} | {seconds:.0f} | {3600 * num_trials / seconds:.0f} |")
    print(f"\nratio {plain / in_tune:.2f}, Ray's start included (goal {GOAL})")
    # What a long sweep comes to: neither side's first start counts.
    busy = sum(trial.seconds for trial in sweep.trials) / 2
    print(f"seconds of trials in Tune, halved: {busy:.0f}; ratio by these {plain / busy:.2f}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600, help="steps of a trial")
    args = parser.parse_args()
    speed(args.trials, args.steps)


if __name__ == "__main__":
    main()
