"""What Ray costs: the way to the first step, and speed under Ray Train against the local launcher.

    python benchmarks/launch.py [--repeats 3] [--steps 400] [--trials-only]

Both sides of a ratio run in turns, in the same minutes, on the same two ranks.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HELLO = Path(__file__).with_name("launch_hello.py")
FIRST_STEP = re.compile(r"first step|^step\s+1/")
RUN = [
    "run.name=run",
    "data.train=builtin://digits/train",
    "train.global_batch_size=128",
    "checkpoint.every_seconds=null",
    "wandb.mode=disabled",
]
POLL_SECONDS = 0.05
WARM_UP_LOG_POINTS = 2
"""Left out of the speed: the first steps fill caches and prefetch queues."""


def environment() -> dict[str, str]:
    """Return this process's environment without a cluster: each side starts a Ray of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "RAY_AUTH_MODE": "disabled"}


def seconds_to_first_step(command: Sequence[str]) -> float:
    """Return the seconds from starting `command` to the line of its first step; let it end."""
    started, first = time.monotonic(), None
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if first is None and FIRST_STEP.search(line):
            first = time.monotonic() - started
    if process.wait() or first is None:
        raise SystemExit("".join(lines) + f"\n{command} did not come to a first step")
    return first


def seconds_to_first_trial(launcher: str) -> float:
    """Return the seconds from the command of a sweep of two trials to the first one's training.

    Each trial is one process. Ours has then imported torch, read its configuration and locked its
    folder; the bare one has imported torch, taken a step and touched a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        command, sign = [sys.executable, str(HELLO), "tune", folder], "started-*"
        if launcher == "ray":
            items = [*RUN, f"run.storage={folder}", "train.steps=2", "sweep.name=sweep"]
            items.append("launch.workers=1")
            items[items.index("run.name=run")] = "data.validation=builtin://digits/validation"
            items.append("sweep.space={run.seed: {grid: [0, 1]}}")
            command = [sys.executable, "-m", "aae_dist", "tune", *items]
            sign = "sweep/trials/*/lock.json"
        started, first = time.monotonic(), None
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(
                command, env=environment(), stdout=output, stderr=subprocess.STDOUT
            )
            while process.poll() is None:
                if first is None and any(Path(folder).glob(sign)):
                    first = time.monotonic() - started
                time.sleep(POLL_SECONDS)
            output.seek(0)
            if process.returncode or first is None:
                raise SystemExit(f"{output.read()}\n{command} did not come to a first trial")
    return first


def ours(folder: str, steps: int, log_every: int, launcher: str) -> list[str]:
    """Return the command that trains the same run under `launcher`: ray or torchrun, two ranks."""
    overrides = [*RUN, f"run.storage={folder}", f"train.steps={steps}"]
    overrides.append(f"train.log_every_steps={log_every}")
    train = ["-m", "aae_dist", "train", *overrides]
    if launcher == "ray":
        return [sys.executable, *train, "launch.workers=2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [sys.executable, *torchrun, *train, "launch.kind=local"]


def start_up(launcher: str) -> float:
    """Return the seconds to the first step of a new run, or of the bare program."""
    with tempfile.TemporaryDirectory() as folder:
        if launcher == "hello":
            return seconds_to_first_step([sys.executable, str(HELLO), "train", folder])
        return seconds_to_first_step(ours(folder, steps=2, log_every=1, launcher=launcher))


def samples_per_second(launcher: str, steps: int) -> float:
    """Return the median speed over the log points of a new run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ours(folder, steps, steps // 10, launcher)
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        records = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        speeds: list[float] = [r["throughput/samples_per_second"] for r in records]
    return statistics.median(speeds[WARM_UP_LOG_POINTS:])


def compare(title: str, unit: str, sides: dict[str, list[float]], goal: str) -> None:
    """Print both sides' medians and their ratio, the first side over the second."""
    (first, a), (second, b) = sides.items()
    x, y = statistics.median(a), statistics.median(b)
    print(f"{title}: {first} {x:.1f} {unit}, {second} {y:.1f} {unit}")
    print(f"  ratio {x / y:.3f} (goal {goal}); all: {a} / {b}", flush=True)


def main() -> None:
    """Measure both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=400, help="steps of a run that measures speed")
    parser.add_argument("--trials-only", action="store_true", help="only the start of sweeps")
    args = parser.parse_args()
    starts: dict[str, list[float]] = {"aae-dist": [], "bare Ray Train": []}
    speeds: dict[str, list[float]] = {"Ray Train": [], "torchrun": []}
    trials: dict[str, list[float]] = {"aae-dist tune": [], "bare Ray Tune": []}
    for _ in range(args.repeats):
        trials["aae-dist tune"].append(round(seconds_to_first_trial("ray"), 1))
        trials["bare Ray Tune"].append(round(seconds_to_first_trial("hello"), 1))
        if args.trials_only:
            continue
        starts["aae-dist"].append(round(start_up("ray"), 1))
        starts["bare Ray Train"].append(round(start_up("hello"), 1))
        speeds["Ray Train"].append(samples_per_second("ray", args.steps))
        speeds["torchrun"].append(samples_per_second("torchrun", args.steps))
    compare("command to first trial", "s", trials, "<= 1.3")
    if args.trials_only:
        return
    compare("command to first step", "s", starts, "<= 1.3")
    compare("samples/s of two ranks", "samples/s", speeds, ">= 0.97")


if __name__ == "__main__":
    main()
