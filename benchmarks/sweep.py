"""Sweeps: trials an hour under `aae-dist tune` against one by one; ASHA against the whole grid.

    python benchmarks/sweep.py speed [--trials 8] [--steps 600]
    python benchmarks/sweep.py asha [--steps 800]

speed: the same trials, one thread each: two at a time in Tune, and one after another in plain
processes of the local launcher. asha: 16 trials, all of them to their end, and with successive
halving; did it find a trial that is as good, and what did it save?
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from aae_dist.config import dump_yaml
from aae_dist.config.sweep_plan import load_sweep
from aae_dist.objective import Objective
from aae_dist.sweeps import SweepRecord, TrialRecord, read_sweep

QUICK = Path(__file__).parents[1] / "configs" / "sweep" / "quick.yaml"
GOAL_SPEED, GOAL_STOPPED, GOAL_DISTANCE = 1.7, 0.5, 0.05
METRIC = "prior_match/sliced_wasserstein"


def overrides(folder: str, name: str, space: dict[str, object], steps: int) -> list[str]:
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
    """Print trials an hour of both."""
    with tempfile.TemporaryDirectory() as folder:
        space = {"run.seed": {"grid": list(range(num_trials))}}
        items = overrides(folder, "speed", space, steps)
        in_tune, sweep = tune(items)
        plain = one_by_one(Path(folder), items)
    assert sweep.counts()["finished"] == num_trials
    print(f"{num_trials} trials of {steps} steps, one thread each, {os.cpu_count()} cores\n")
    print("| side | seconds | trials an hour |\n|---|---|---|")
    for name, seconds in (("aae-dist tune", in_tune), ("one after another", plain)):
        print(f"| {name} | {seconds:.0f} | {3600 * num_trials / seconds:.0f} |")
    print(f"\nratio {plain / in_tune:.2f}, Ray's start included (goal {GOAL_SPEED})")
    # What a long sweep comes to: neither side's first start counts.
    busy = sum(trial.seconds for trial in sweep.trials) / 2
    print(f"seconds of trials in Tune, halved: {busy:.0f}; ratio by these {plain / busy:.2f}")


def asha(steps: int, folder: str) -> None:
    """Print what ASHA stopped, found and saved; a grid that lies in `folder` is not run again."""
    space: dict[str, object] = {
        "prior": {"grid": [{"kind": "gaussian"}, {"kind": "mixture"}]},
        "model.latent_dim": {"grid": [2, 4]},
        "phases.generator.optimizer.lr": {"grid": [1e-4, 3e-4, 1e-3, 3e-3]},
    }
    rung = steps // 8
    every = [f"train.evaluate_every_steps={rung}"]
    _, grid = tune([*overrides(folder, "grid", space, steps), *every])
    halving = f"sweep.scheduler={{kind: asha, grace: {rung}, reduction_factor: 2}}"
    _, halved = tune([*overrides(folder, "asha", space, steps), *every, halving])
    objective = Objective.of(METRIC, "min")
    best, found = best_of(grid, objective), best_of(halved, objective)
    a, b = objective.value(best.metrics), objective.value(found.metrics)
    assert a is not None
    assert b is not None
    stopped = halved.counts()["pruned"] / len(halved.trials)
    print(f"{len(grid.trials)} trials of up to {steps} steps, {METRIC}\n")
    print("| side | best | found | stopped | steps | worker seconds |\n|---|---|---|---|---|---|")
    for name, sweep, trial, value in (("grid", grid, best, a), ("ASHA", halved, found, b)):
        num = sweep.counts()["pruned"]
        print(
            f"| {name} | {value:.4g} | {trial.id} | {num} | {sum(t.step for t in sweep.trials):,} "
            f"| {seconds_of(sweep):.0f} |"
        )
    print(f"\nstopped early: {stopped:.0%} (goal at least {GOAL_STOPPED:.0%})")
    print(f"best found, above the grid's best: {b / a - 1:.1%} (goal {GOAL_DISTANCE:.0%})")
    print(f"saved: {1 - seconds_of(halved) / seconds_of(grid):.0%} of the worker seconds")


def best_of(sweep: SweepRecord, objective: Objective) -> TrialRecord:
    """Return the finished trial with the lowest value."""
    finished = [t for t in sweep.trials if t.state == "finished" and objective.value(t.metrics)]
    return min(finished, key=lambda trial: objective.value(trial.metrics) or 0.0)


def seconds_of(sweep: SweepRecord) -> float:
    """Return the seconds in which trials held a worker, all in all."""
    return sum(trial.seconds * trial.workers for trial in sweep.trials)


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "asha"])
    parser.add_argument("--trials", type=int, default=8, help="trials of `speed`")
    parser.add_argument("--steps", type=int, default=600, help="steps of a trial")
    parser.add_argument("--folder", help="where `asha` keeps its sweeps; finished ones are reused")
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.trials, args.steps)
    elif args.folder:
        asha(args.steps, args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            asha(args.steps, folder)


if __name__ == "__main__":
    main()
