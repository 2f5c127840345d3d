"""Our side of `peers.py`: one run in a process of its own, with the defaults of the project."""

import argparse
import json
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from aae_dist import load_run
from aae_dist.config import RunConfig, load_config
from aae_dist.distributed.world import single
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.training.trainer import train
from aae_dist.version import __version__


class Clock:
    """A reporter that notes when training began, at its first line, and each log point."""

    def __init__(self, progress: str | None) -> None:
        """Start with no times; count steps in the file `progress`, if there is one."""
        self.times: list[float] = []
        self.progress = np.memmap(progress, np.int64, "r+") if progress else np.zeros(1, np.int64)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Note the time of a log point."""
        self.times.append(time.perf_counter())
        self.progress[0] = int(metrics["step"])

    def stop_requested(self) -> bool:
        """Return that nobody asks."""
        return False

    def stopped_as(self) -> str:
        """Return what a stopped run would end as."""
        return "interrupted"

    def save_requested(self) -> bool:
        """Return that nobody asks."""
        return False

    def line(self, text: str) -> None:
        """Print a line; the first says that networks and data are ready and training begins."""
        if not self.times:
            self.times.append(time.perf_counter())
        print(text, file=sys.stderr, flush=True)


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """Return the defaults, with what makes the two sides alike and the caller's overrides."""
    work = Path(arguments.work).resolve()
    overrides = [
        f"run.name={work.name}",
        f"run.storage={json.dumps(str(work.parent))}",
        f"run.seed={arguments.seed}",
        f"data.train={json.dumps(arguments.train)}",
        "model.latent_dim=8",
        f"train.steps={arguments.steps}",
        f"train.log_every_steps={arguments.log_every}",
        "train.device=cpu",
        "launch.kind=local",
        f"launch.cpus_per_worker={arguments.threads}",
        "wandb.mode=disabled",
        *arguments.override,
    ]
    return load_config([], overrides).config


@torch.no_grad()
def score(run: TrainedRun, images: Tensor) -> tuple[Tensor, float]:
    """Return the codes of uint8 images [N, 1, 28, 28] and the mean squared error per pixel."""
    codes = run.encode(images)
    error = run.decode(codes) - images.float() / 255
    return codes, error.double().square().mean().item()


def main() -> None:
    """Train, and write codes, error and seconds to a file.

    No validation set is given to the run: its seconds, from the moment that it is built to the
    return of `train`, hold no evaluation but all of the logging and the saving.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", required=True, help="folder that torchvision keeps MNIST in")
    parser.add_argument("--train", required=True, help="training shards")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--log-every", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--progress", help="file of 8 bytes that counts the steps")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", required=True, help="folder of the run, new")
    parser.add_argument("--out", required=True, help="the .npz to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = Clock(arguments.progress)
    outcome = train(run_config(arguments), single(), clock, launch_id=secrets.token_hex(8))
    seconds = time.perf_counter() - clock.times[0]
    codes, mse = score(load_run(outcome.run_uri), MNIST(arguments.mnist, train=False).data[:, None])
    np.savez(
        arguments.out,
        codes=codes.numpy(),
        mse=mse,
        seconds=seconds,
        steps=outcome.step,
        versions=f"aae_dist {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
    )


if __name__ == "__main__":
    main()
