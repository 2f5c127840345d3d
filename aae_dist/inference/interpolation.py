"""Codes along interpolation paths through the latent space of a trained run."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aae_dist.evaluation import interpolation as paths
from aae_dist.inference.trained_run import TrainedRun

PRIOR_SAMPLES = 10_000
INNER = (0.02, 0.98)
"""Quantiles of the prior between which a plane and a traversal move."""


@dataclass(frozen=True)
class InterpolationOptions:
    """What to draw."""

    kind: str = "pairs"
    """pairs: from one code to another, one row per pair. plane: a patch between four codes, or, of
    a 2-D latent space, the prior's whole range. traverse: one row per dimension, the others
    fixed."""
    num: int = 8
    """Rows of pairs."""
    steps: int = 10
    """Images per row."""
    path: str = "auto"
    """auto: spherical for a prior on a sphere and for a Gaussian above 2 dimensions."""
    source: str = "data"
    """data: codes of validation samples; prior: samples of the prior."""
    data: tuple[str, ...] = ()
    """Absolute patterns of shards; none means the run's validation shards."""
    seed: int = 0


def fitting_path(run: TrainedRun, path: str) -> paths.Path:
    """Return `path`, or for `auto` the one that stays where the prior has its mass."""
    if path in ("linear", "spherical"):
        return "linear" if path == "linear" else "spherical"
    kind, dim = run.config.prior.kind, run.config.model.latent_dim
    return "spherical" if str(kind) == "sphere" or (kind == "gaussian" and dim > 2) else "linear"


def codes_of(run: TrainedRun, options: InterpolationOptions) -> Tensor:
    """Return the codes to decode, shape (rows, columns, Z)."""
    path = fitting_path(run, options.path)
    if options.kind == "pairs":
        ends = _ends(run, options, 2 * options.num)
        return paths.between(ends[0::2], ends[1::2], options.steps, path)
    low, high = _range(run, options.seed)
    if options.kind == "traverse":
        return paths.traversal(_ends(run, options, 1)[0], low, high, options.steps)
    if len(low) == 2:
        corners = [(low[0], high[1]), (high[0], high[1]), (low[0], low[1]), (high[0], low[1])]
        return paths.plane(torch.tensor(corners), options.steps, "linear")
    return paths.plane(_ends(run, options, 4), options.steps, path)


def _ends(run: TrainedRun, options: InterpolationOptions, num: int) -> Tensor:
    """Return `num` codes to start from or to end at, float32 on the CPU."""
    if options.source == "prior":
        return run.prior.sample(num, torch.Generator().manual_seed(options.seed))
    data = run.open(list(options.data))
    drawn = np.random.default_rng(options.seed).choice(len(data), num, replace=num > len(data))
    images, _ = data.read(drawn)
    return run.encode(images).float().cpu()


def _range(run: TrainedRun, seed: int) -> tuple[Tensor, Tensor]:
    drawn = run.prior.sample(PRIOR_SAMPLES, torch.Generator().manual_seed(seed))
    low, high = drawn.quantile(torch.tensor(INNER), dim=0)
    return low, high
