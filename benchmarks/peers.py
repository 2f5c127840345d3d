"""Quality of ours and of pythae 0.1.2 after the same wall time of training on MNIST.

    python benchmarks/peers.py --mnist DIR --pythae-python PATH/bin/python [--epochs 3]
        [--threads 2] [--long] [--work DIR] [--steps N] [--seed 0] [--override key=value ...]

PATH is an environment of pythae's own, made once with

    python -m venv PATH && PATH/bin/pip install -r benchmarks/peers-requirements.txt

Both sides train 784-1000-1000-8 networks (ReLU, sigmoid output, deterministic posterior, N(0, 1)
prior) at batch 128 on the CPU, each in a process of its own. pythae trains `--epochs` passes with
its AdversarialTrainer (Adam, 1e-3 and 5e-4); ours gets the same wall time and the project's
defaults. Its number of steps is planned from a calibration of some 200 steps, because learning
rates fall over the plan. Seconds are those of training: imports, reading of raw files and
evaluation count on neither side, logging and saving count on both.

Both are scored alike: squared error per pixel of the test images, and the C2ST (accuracy of a fresh
network that tells test codes from as many prior samples, 0.5 is a perfect match), mean of three
seeds. `--long` goes on with ten times the epochs.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timing import print_header
from torchvision.datasets import MNIST

from aae_dist.config.parts import GaussianPrior
from aae_dist.data.pack import DEFAULTS, pack
from aae_dist.distributed.seeds import generator
from aae_dist.evaluation.prior_match import c2st
from aae_dist.priors import build_prior

HERE = Path(__file__).parent
BATCH = 128
MARGIN = 0.98
"""Part of the time that is planned: the rest is for what a calibration cannot foresee."""
CALIBRATION_EPOCHS = 5
C2ST_SEEDS = (0, 1, 2)
SETS = {"train": "train", "t10k": "test"}

Results = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What both sides train on, and where they write."""

    mnist: Path
    shards: Path
    num_samples: int
    work: Path
    threads: int
    seed: int
    overrides: tuple[str, ...]

    def run(self, script: str, name: str, python: str = sys.executable, **options) -> Results:
        """Run a side's script to its end; its output goes to a file beside its results."""
        out, log = self.work / f"{name}.npz", self.work / f"{name}.log"
        options |= {"mnist": self.mnist, "threads": self.threads, "seed": self.seed}
        options |= {"work": self.work / name, "out": out}
        pairs = [(f"--{key.replace('_', '-')}", value) for key, value in options.items()]
        command = [python, str(HERE / script), *(str(text) for pair in pairs for text in pair)]
        if self.overrides and script == "peers_ours.py":
            command += ["--override", *self.overrides]
        with log.open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
        if done.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise SystemExit(f"{script} ended with code {done.returncode}:\n{tail}")
        with np.load(out) as results:
            return dict(results)


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


def steps_for(job: Job, seconds: float, name: str) -> int:
    """Return how many steps ours can do in `seconds`, measured just now.

    The calibration trains on the first shard alone: its first epoch decodes images, as the first
    epoch of the real run will, and the later ones show the speed after that.
    """
    shard_epoch = -(-min(job.num_samples, DEFAULTS.shard_samples) // BATCH)
    interval = max(1, shard_epoch // 2)
    times = job.run(
        "peers_ours.py",
        name,
        train=job.shards / "train" / "000.tar",
        steps=CALIBRATION_EPOCHS * shard_epoch,
        log_every=interval,
    )["times"]
    spans = np.diff(times)[: CALIBRATION_EPOCHS * shard_epoch // interval]
    steady = spans[3:].mean() / interval
    decoding = max(0.0, spans[1] / interval - steady)
    start = max(0.0, spans[0] - spans[1])
    epoch = -(-job.num_samples // BATCH)
    say(f"calibration: {1 / steady:.1f} steps/s, {1 / (steady + decoding):.1f} in the first epoch")
    budget = max(0.0, seconds * MARGIN - start)
    in_first_epoch = min(epoch, budget / (steady + decoding))
    after = max(0.0, budget - epoch * (steady + decoding)) / steady
    return max(1, int(in_first_epoch + after))


def c2st_values(codes: np.ndarray) -> list[float]:
    """Return the C2ST of codes against as many samples of N(0, 1), one value a seed."""
    z = torch.from_numpy(codes)
    prior = build_prior(GaussianPrior(), z.shape[1])
    return [
        c2st(
            z,
            prior.sample(len(z), generator(seed, "peers/prior")),
            generator(seed, "peers/c2st"),
        ).value
        for seed in C2ST_SEEDS
    ]


def compare(job: Job, pythae_python: str, epochs: int, steps: int | None) -> dict[str, Results]:
    """Train both sides, pythae first."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    say(f"pythae trains {epochs} epochs")
    theirs = job.run("peers_pythae.py", f"pythae-{stamp}", pythae_python, epochs=epochs)
    seconds = float(theirs["seconds"])
    say(f"pythae took {seconds:.1f} s")
    steps = steps or steps_for(job, seconds, f"calibration-{stamp}")
    say(f"ours trains {steps} steps")
    train = {"train": job.shards / "train", "steps": steps, "log_every": max(1, steps // 10)}
    ours = job.run("peers_ours.py", f"ours-{stamp}", **train)
    say(f"ours took {float(ours['seconds']):.1f} s")
    return {"pythae": theirs, "ours": ours}


def print_table(title: str, job: Job, sides: dict[str, Results]) -> None:
    """Print both sides as a markdown table."""
    print_header(title)
    for results in sides.values():
        print(results["versions"])
    if job.overrides:
        print("Overrides of ours: " + " ".join(job.overrides))
    print(f"\n| side | wall s | steps | samples/s | mse a pixel | C2ST, {len(C2ST_SEEDS)} seeds |")
    print("|---|---|---|---|---|---|")
    for name, results in sides.items():
        seconds, mse = float(results["seconds"]), float(results["mse"])
        values = c2st_values(results["codes"])
        match = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        speed = int(results["samples"]) / seconds
        print(
            f"| {name} | {seconds:.1f} | {results['steps']} | {speed:.0f} | {mse:.5f} | {match} |"
        )
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
        num_samples=len(MNIST(str(mnist), train=True)),
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of ours, instead of the same wall time")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    job = prepare(arguments)
    for epochs in (arguments.epochs, 10 * arguments.epochs)[: 1 + arguments.long]:
        steps = arguments.steps and arguments.steps * epochs // arguments.epochs
        sides = compare(job, arguments.pythae_python, epochs, steps)
        length = f"{steps} steps" if steps else "the same wall time"
        print_table(f"MNIST, pythae's epochs: {epochs}, ours: {length}", job, sides)


if __name__ == "__main__":
    main()
