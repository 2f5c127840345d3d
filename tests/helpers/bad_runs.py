"""Whole runs on shards of which some are bad, as ranks of a process group."""

from pathlib import Path
from typing import Any

import torch

from aae_dist.config import RunConfig, load_config
from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError
from aae_dist.training.trainer import train
from aae_dist.utils import text as progress

TINY = (
    "run.name=run",
    "model={latent_dim: 2, encoder_widths: [16], decoder_widths: [16], discriminator_widths: [16]}",
    "train.global_batch_size=24",
    "train.log_every_steps=1",
    "train.precision=fp64",
    "wandb.mode=disabled",
    "launch.kind=local",
)


class Quiet:
    """A reporter that keeps lines and asks to stop once `stop_at` steps were logged."""

    def __init__(self, stop_at: int | None) -> None:
        self.lines: list[str] = []
        self._left = stop_at

    def report(self, metrics: Any) -> None:
        if self._left is not None:
            self._left -= 1

    def stop_requested(self) -> bool:
        return self._left is not None and self._left <= 0

    def stopped_as(self) -> str:
        return "interrupted"

    def save_requested(self) -> bool:
        return False

    def line(self, text: str) -> None:
        self.lines.append(text)


def config(shards: Path, storage: Path, *items: str) -> RunConfig:
    place = (f"data.train={shards}", f"run.storage={storage}")
    return load_config([], [*TINY, *place, *items]).config


def train_rank(
    world: World, shards: Path, storage: Path, items: tuple[str, ...], stop_at: int | None = None
) -> dict[str, Any]:
    """Return how the run ended on this rank."""
    torch.set_num_threads(1)
    reporter = Quiet(stop_at)
    try:
        outcome = train(config(shards, storage, *items), world, reporter, "launch")
    except AaeDistError as error:
        return {"state": type(error).__name__, "message": str(error), "lines": reporter.lines}
    return {"state": outcome.state, "step": outcome.step, "lines": reporter.lines}


def impatient_rank(world: World, *arguments: Any) -> dict[str, Any]:
    """Return the same; progress is shown as often as there is some."""
    progress.LINE_SECONDS = 0.0
    return train_rank(world, *arguments)
