"""What the statistics are worth when codes match the prior perfectly: the unit they are given in.

Raw distances grow with the prior's scale and the number of dimensions and shrink with the number of
samples. Divided by their mean over pairs of prior samples of equal size, 1.0 is a perfect match
under every prior and latent size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.distributed import seeds
from aae_dist.evaluation import prior_match
from aae_dist.priors import Prior

NUM_PAIRS = 64
MMD_ROWS = 2000
"""Rows of each sample in the MMD's null; see `_nulls`."""
BANDWIDTH_ROWS = 1000


@dataclass(frozen=True)
class Yardstick:
    """All that scoring codes against one prior needs and that does not depend on the codes."""

    prior_samples: Tensor
    """Float32 [n, Z]; codes are compared with the same ones at every evaluation of a run."""
    directions: Tensor
    """Float32 [Z, P], for the sliced Wasserstein distance; shared by statistic and null."""
    bandwidth: float
    """Unit of the MMD's kernels, shared by statistic and null."""
    null_sliced_wasserstein: float
    """Mean distance between two prior samples of n rows, in units of the codes."""
    null_mmd: float
    """Mean MMD between two prior samples of n rows."""


def build_yardstick(prior: Prior, num_samples: int, seed: int) -> Yardstick:
    """Draw the prior samples and measure the null; takes seconds at 10,000 samples.

    Args:
        prior: The prior p(z).
        num_samples: n, the number of codes that will be scored.
        seed: The run's seed; every draw is keyed by it.
    """
    draw = seeds.generator(seed, "evaluation/prior")
    prior_nZ = prior.sample(num_samples, draw).float()
    directions_ZP = prior_match.projections(prior.latent_dim, seeds.generator(seed, "projections"))
    kernel_rows = prior.sample(BANDWIDTH_ROWS, seeds.generator(seed, "evaluation/bandwidth"))
    bandwidth = prior_match.median_distance(kernel_rows.float())
    wasserstein, mmd = _nulls(prior, num_samples, seed, directions_ZP, bandwidth)
    return Yardstick(prior_nZ, directions_ZP, bandwidth, wasserstein, mmd)


def score(codes_nZ: Tensor, yardstick: Yardstick, seed: int) -> dict[str, float]:
    """Return the metrics of the match between codes, float [n, Z], and the prior.

    Codes that are not finite give metrics that are not a number.
    """
    codes, prior = codes_nZ.float(), yardstick.prior_samples
    if not bool(codes.isfinite().all()):
        return dict.fromkeys(_NAMES, math.nan) | {"prior_match/num_samples": float(len(codes))}
    accuracy = prior_match.c2st(codes, prior, seeds.generator(seed, "evaluation/c2st"))
    wasserstein = prior_match.sliced_wasserstein(codes, prior, yardstick.directions)
    mmd = prior_match.mmd(codes, prior, yardstick.bandwidth)
    values = (
        accuracy.value,
        accuracy.low,
        accuracy.high,
        wasserstein / yardstick.null_sliced_wasserstein,
        mmd / yardstick.null_mmd,
    )
    return dict(zip(_NAMES, values, strict=True)) | {"prior_match/num_samples": float(len(codes))}


_NAMES = (
    "prior_match/c2st",
    "prior_match/c2st_low",
    "prior_match/c2st_high",
    "prior_match/sliced_wasserstein",
    "prior_match/mmd",
)


def _nulls(
    prior: Prior, num_samples: int, seed: int, directions_ZP: Tensor, bandwidth: float
) -> tuple[float, float]:
    """Return the mean sliced Wasserstein distance and MMD over pairs of prior samples.

    The MMD's pairs have m = min(n, 2000) rows, and their mean is multiplied by sqrt(m / n): exact
    MMD of 64 pairs at n = 10,000 takes a minute of one core. The biased MMD is the norm of a
    difference of two means of independent kernel features, so its square has a mean that is
    exactly proportional to 1 / n, and its shape has long converged (central limit theorem) at 2000.
    """
    draw = seeds.generator(seed, "evaluation/null")
    rows = min(num_samples, MMD_ROWS)
    wasserstein, mmd = torch.zeros(NUM_PAIRS), torch.zeros(NUM_PAIRS)
    for pair in range(NUM_PAIRS):
        a, b = prior.sample(2 * num_samples, draw).float().split(num_samples)
        wasserstein[pair] = prior_match.sliced_wasserstein(a, b, directions_ZP)
        mmd[pair] = prior_match.mmd(a[:rows], b[:rows], bandwidth)
    return wasserstein.mean().item(), mmd.mean().item() * math.sqrt(rows / num_samples)
