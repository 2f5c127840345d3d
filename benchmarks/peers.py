"""Quality of ours and of pythae 0.1.2 after the same time of training on MNIST.

    python benchmarks/peers.py --mnist DIR --pythae-python PATH/bin/python [--epochs 3]
        [--threads 2] [--long] [--work DIR] [--steps N] [--seed 0] [--override key=value ...]

PATH is an environment of pythae's own, made once with

    python -m venv PATH && PATH/bin/pip install -r benchmarks/peers-requirements.txt

Both sides train 784-1000-1000-8 networks (ReLU, sigmoid output, deterministic posterior, N(0, 1)
prior) at batch 128 on the CPU, each in a process of its own. pythae trains `--epochs` passes with
its AdversarialTrainer (Adam, 1e-3 and 5e-4); ours trains, with the project's defaults, as many
steps as take the same time. What a step costs is measured first: both programs run in turns, one
stopped while the other works, and the ratio is the median over the rounds. So a machine that slows
down for a while hits both sides alike. Logging and saving count on ours, and logging after every
step while the pace is taken; imports and evaluation count on neither side.

Both are scored alike: squared error per pixel of the test images, and the C2ST (accuracy of a fresh
network that tells test codes from as many prior samples, 0.5 is a perfect match), mean of three
seeds. `--long` goes on with ten times the epochs; `--train-threads 1` then spares a shared machine.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import median_ratio, print_header

from aae_dist.config.sections.model import GaussianPrior
from aae_dist.data.pack import pack
from aae_dist.evaluation.prior_match import c2st
from aae_dist.priors import build_prior
from aae_dist.utils.tensors import keyed_generator

HERE = Path(__file__).parent
BATCH = 128
MARGIN = 0.98
"""Part of pythae's time that is planned for ours."""
ROUNDS, SLICE_SECONDS, WARM_STEPS = 9, 4.0, 20
C2ST_SEEDS = (0, 1, 2)
SETS = {"train": "train", "t10k": "test"}

Results = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What both sides train on, and where they write."""

    mnist: Path
    shards: Path
    work: Path
    threads: int
    seed: int
    overrides: tuple[str, ...]

    def command(self, script: str, name: str, python: str, **options: Any) -> list[str]:
        """Return the command of a side's script; what it writes is called `name`."""
        options |= {"mnist": self.mnist, "threads": self.threads, "seed": self.seed}
        options |= {"work": self.work / name, "out": self.work / f"{name}.npz"}
        pairs = [(f"--{key.replace('_', '-')}", value) for key, value in options.items()]
        command = [python, str(HERE / script), *(str(text) for pair in pairs for text in pair)]
        if self.overrides and script == "peers_ours.py":
            command += ["--override", *self.overrides]
        return command

    def run(self, script: str, name: str, python: str = sys.executable, **options: Any) -> Results:
        """Run a side's script to its end; its output goes to a file beside its results."""
        log = self.work / f"{name}.log"
        with log.open("wb") as stream:
            command = self.command(script, name, python, **options)
            done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
        if done.returncode:
            raise SystemExit(failure(script, done.returncode, log))
        with np.load(self.work / f"{name}.npz") as results:
            return dict(results)

    @contextlib.contextmanager
    def stopped(self, script: str, name: str, python: str, **options: Any) -> Iterator["Paced"]:
        """Start a side that counts its steps, let it warm up, and stop it; kill it at the end."""
        progress = self.work / f"{name}.progress"
        progress.write_bytes(bytes(8))
        command = self.command(script, name, python, progress=progress, **options)
        log = self.work / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            side = Paced(process, np.memmap(progress, np.int64, "r"))
            while side.steps < WARM_STEPS and process.poll() is None:
                time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit(failure(script, process.returncode, log))
            os.kill(process.pid, signal.SIGSTOP)
            yield side
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Paced:
    """A side that runs while it is told to."""

    process: subprocess.Popen[bytes]
    progress: np.ndarray

    @property
    def steps(self) -> int:
        """Steps that it has done."""
        return int(self.progress[0])

    def seconds_per_step(self) -> float:
        """Let it run for a while; return what a step took."""
        os.kill(self.process.pid, signal.SIGCONT)
        before, started = self.steps, time.perf_counter()
        time.sleep(SLICE_SECONDS)
        done, seconds = self.steps - before, time.perf_counter() - started
        os.kill(self.process.pid, signal.SIGSTOP)
        return seconds / max(done, 1)


def failure(script: str, code: int, log: Path) -> str:
    """Return what a side's script said at its end."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    return f"{script} ended with code {code}:\n{tail}"


def say(text: str) -> None:
    """Tell on stderr what goes on; stdout is for the tables."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def limited(root: Path, out: Path, limit: int) -> Path:
    """Return a copy of MNIST's raw files with the first `limit` images of each set."""
    raw = out / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for prefix in SETS:
        for kind, header, row in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{prefix}-{kind}-ubyte"
            data = (root / "MNIST" / "raw" / name).read_bytes()[: header + limit * row]
            count = (len(data) - header) // row
            (raw / name).write_bytes(data[:4] + count.to_bytes(4, "big") + data[8:])
    return out


def pace(job: Job, pythae_python: str) -> dict[str, list[float]]:
    """Return seconds a step of both sides, measured in turns, one value a round."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    ours = {"train": job.shards / "train", "steps": 10**6, "log_every": 1}
    seconds: dict[str, list[float]] = {"pythae": [], "ours": []}
    with (
        job.stopped("peers_pythae.py", f"pace-pythae-{stamp}", pythae_python, epochs=99) as a,
        job.stopped("peers_ours.py", f"pace-ours-{stamp}", sys.executable, **ours) as b,
    ):
        sides = {"pythae": a, "ours": b}
        for number in range(ROUNDS):
            for name in sides if number % 2 else reversed(sides):
                seconds[name].append(sides[name].seconds_per_step())
    return seconds


def c2st_values(codes: np.ndarray) -> list[float]:
    """Return the C2ST of codes against as many samples of N(0, 1), one value a seed."""
    z = torch.from_numpy(codes)
    prior = build_prior(GaussianPrior(), z.shape[1])
    return [
        c2st(
            z,
            prior.sample(len(z), keyed_generator(seed, "peers/prior")),
            keyed_generator(seed, "peers/c2st"),
        ).value
        for seed in C2ST_SEEDS
    ]


def compare(
    job: Job, pythae_python: str, epochs: int, steps: int | None, ratio: float
) -> dict[str, Results]:
    """Train both sides, pythae first; a step of ours takes `ratio` times one of pythae's."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    say(f"pythae trains {epochs} epochs")
    theirs = job.run("peers_pythae.py", f"pythae-{stamp}", pythae_python, epochs=epochs)
    steps = steps or int(MARGIN * int(theirs["steps"]) / ratio)
    say(f"ours trains {steps} steps")
    ours = job.run(
        "peers_ours.py",
        f"ours-{stamp}",
        train=job.shards / "train",
        steps=steps,
        log_every=max(1, steps // 10),
    )
    return {"pythae": theirs, "ours": ours}


def print_table(title: str, job: Job, sides: dict[str, Results], pace: dict[str, float]) -> None:
    """Print both sides as a markdown table."""
    print_header(title)
    for results in sides.values():
        print(results["versions"])
    if job.overrides:
        print("Overrides of ours: " + " ".join(job.overrides))
    print(
        "\n| side | steps | s at the measured speed | s as it ran | mse per pixel | C2ST, 3 seeds |"
    )
    print("|---|---|---|---|---|---|")
    for name, results in sides.items():
        steps, mse = int(results["steps"]), float(results["mse"])
        values = c2st_values(results["codes"])
        match = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        ran = f"{steps * pace[name]:.1f} | {float(results['seconds']):.1f}"
        print(f"| {name} | {steps} | {ran} | {mse:.5f} | {match} |")
    print(
        f"\n{len(sides['ours']['codes'])} test images; C2ST 0.5 is a perfect match.\n", flush=True
    )


def prepare(arguments: argparse.Namespace) -> Job:
    """Pack MNIST, unless an earlier call did."""
    mnist, work = arguments.mnist.expanduser().resolve(), arguments.work.expanduser().resolve()
    if arguments.limit:
        work /= f"limit-{arguments.limit}"
        mnist = limited(mnist, work / "mnist", arguments.limit)
    work.mkdir(parents=True, exist_ok=True)
    shards = work / "shards"
    if not shards.exists():
        pack("mnist", str(shards), str(mnist), write=say)
    return Job(
        mnist=mnist,
        shards=shards,
        work=work,
        threads=arguments.threads,
        seed=arguments.seed,
        overrides=tuple(arguments.override),
    )


def main() -> None:
    """Compare, once or twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, required=True, help="root of torchvision's MNIST")
    parser.add_argument("--pythae-python", required=True, help="Python of pythae's environment")
    parser.add_argument("--epochs", type=int, default=3, help="pythae's passes")
    parser.add_argument("--long", action="store_true", help="then ten times the epochs too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-threads", type=int, help="for training, where not --threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of ours, instead of the same wall time")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    job = prepare(arguments)
    say("measuring the pace of both sides in turns")
    seconds = pace(job, arguments.pythae_python)
    ratio, low, high = median_ratio(seconds["ours"], seconds["pythae"])
    middle = {name: sorted(values)[ROUNDS // 2] for name, values in seconds.items()}
    spread = f"{ratio:.3f} ({low:.3f} to {high:.3f}), {job.threads} threads"
    say(f"a step of ours takes {spread}, of one of pythae's")
    trained = replace(job, threads=arguments.train_threads or arguments.threads)
    for epochs in (arguments.epochs, 10 * arguments.epochs)[: 1 + arguments.long]:
        steps = arguments.steps and arguments.steps * epochs // arguments.epochs
        sides = compare(trained, arguments.pythae_python, epochs, steps, ratio)
        print_table(
            f"MNIST, pythae's epochs: {epochs}; a step takes {ratio:.3f} of its", job, sides, middle
        )


if __name__ == "__main__":
    main()
