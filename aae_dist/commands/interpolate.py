"""`aae-dist interpolate`: images along ways through the latent space of a trained run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aae_dist.commands.images import checked_path, write_images
from aae_dist.commands.trained import open_run
from aae_dist.config.paths import absolute_storage
from aae_dist.evaluation import paths
from aae_dist.inference.trained_run import TrainedRun

PRIOR_SAMPLES = 10_000
INNER = (0.02, 0.98)
"""Quantiles of the prior between which a plane and a traversal move."""


@dataclass(frozen=True)
class Ways:
    """What to draw."""

    kind: str = "pairs"
    """pairs: from one code to another, a row each. plane: a patch between four codes, or, of a
    2-D latent space, the prior's whole range. traverse: one dimension a row, the others fixed."""
    num: int = 8
    """Rows of pairs."""
    steps: int = 10
    """Images a row."""
    path: str = "auto"
    """auto: spherical for a prior on a sphere and for a Gaussian above 2 dimensions."""
    source: str = "data"
    """data: codes of validation samples; prior: samples of the prior."""
    data: tuple[str, ...] = ()
    """Patterns of shards; none means the run's validation shards."""
    overrides: tuple[str, ...] = ()
    """Of `data.*` and `train.device`."""
    seed: int = 0


def interpolate(uri: str, out: str, ways: Ways, step: int | None = None) -> int:
    """Write images along ways through the latent space of the run at `uri` to a file.

    Args:
        uri: the run's folder.
        out: local file; its suffix says what is written (see `commands.images.WRITERS`).
        ways: which ways.
        step: the checkpoint's step; by default the newest.

    Raises:
        ConfigError: the suffix of `out` is not one that we write, or there is no data to take.
        CheckpointError: the folder holds no checkpoint that verifies.
        DataError: the data is missing or damaged.
    """
    path = checked_path(out)
    run = open_run(uri, step, ways.overrides)
    codes = _codes(run, ways)
    images = run.decode(codes.flatten(0, 1))
    write_images(path, images, columns=codes.shape[1])
    print(
        f"{codes.shape[0]} rows of {codes.shape[1]} images ({ways.kind}, "
        f"{fitting_path(run, ways.path)}) of step {run.step:,} written to {path}"
    )
    return 0


def fitting_path(run: TrainedRun, path: str) -> paths.Path:
    """Return `path`, or for `auto` the one that stays where the prior has its mass."""
    if path in ("linear", "spherical"):
        return "linear" if path == "linear" else "spherical"
    kind, dim = run.config.prior.kind, run.config.model.latent_dim
    return "spherical" if str(kind) == "sphere" or (kind == "gaussian" and dim > 2) else "linear"


def _codes(run: TrainedRun, ways: Ways) -> Tensor:
    """Return the codes to decode, shape (rows, columns, Z)."""
    path = fitting_path(run, ways.path)
    if ways.kind == "pairs":
        ends = _ends(run, ways, 2 * ways.num)
        return paths.between(ends[0::2], ends[1::2], ways.steps, path)
    low, high = _range(run, ways.seed)
    if ways.kind == "traverse":
        return paths.traversal(_ends(run, ways, 1)[0], low, high, ways.steps)
    if len(low) == 2:
        corners = [(low[0], high[1]), (high[0], high[1]), (low[0], low[1]), (high[0], low[1])]
        return paths.plane(torch.tensor(corners), ways.steps, "linear")
    return paths.plane(_ends(run, ways, 4), ways.steps, path)


def _ends(run: TrainedRun, ways: Ways, num: int) -> Tensor:
    """Return `num` codes to start from or to end at, float32 on the CPU."""
    if ways.source == "prior":
        return run.prior.sample(num, torch.Generator().manual_seed(ways.seed))
    data = run.open(_absolute(ways.data))
    drawn = np.random.default_rng(ways.seed).choice(len(data), num, replace=num > len(data))
    images, _ = data.read(drawn)
    return run.encode(images).float().cpu()


def _range(run: TrainedRun, seed: int) -> tuple[Tensor, Tensor]:
    drawn = run.prior.sample(PRIOR_SAMPLES, torch.Generator().manual_seed(seed))
    low, high = drawn.quantile(torch.tensor(INNER), dim=0)
    return low, high


def _absolute(data: Sequence[str]) -> list[str]:
    return [absolute_storage(pattern) for pattern in data]
