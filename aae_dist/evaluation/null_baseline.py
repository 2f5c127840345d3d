"""Baselines of the statistics: their values when codes match the prior perfectly.

Raw distances grow with the prior's scale and the number of dimensions and shrink with the number of
samples. They are divided by the distance of two prior samples of equal size, so that 1.0 is a
perfect match under every prior and latent size.

Codes are compared with many prior samples, not with one, and the root mean square distance is
scored: with one sample of 500 points a perfect swiss roll scored 1.56 under one seed and 0.84 under
the next. Both distances are norms of differences of means, so many samples cost no more than one:
their mean and the variance around it suffice.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.evaluation import prior_match
from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator

NUM_SAMPLES = 64
"""Prior samples of n rows that the sliced Wasserstein distance is taken to, and its null among."""
POOL = 4
"""Rows that stand for the prior in the MMD, in multiples of n."""
BANDWIDTH_ROWS = 1000


@dataclass(frozen=True)
class SlicedWasserstein:
    """Root mean square sliced Wasserstein-2 distance to many prior samples of n rows."""

    directions: Tensor
    """Float32 [Z, P], shared by statistic and null."""
    quantiles: NDArray[Any]
    """Float32 [P, n]: the samples' sorted projections, averaged over the samples."""
    variance: float
    """Mean squared difference of one sample's sorted projections from `quantiles`."""

    def __call__(self, codes_nZ: Tensor) -> float:
        """Return the distance of n codes, in units of the codes."""
        gap_Pn = prior_match.sorted_projections(codes_nZ, self.directions)
        gap_Pn -= self.quantiles
        return math.sqrt(np.square(gap_Pn).mean(dtype=np.float64) + self.variance)

    @property
    def null(self) -> float:
        """The root mean square distance over all pairs among the prior samples."""
        return math.sqrt(2 * self.variance * NUM_SAMPLES / (NUM_SAMPLES - 1))


@dataclass(frozen=True)
class Mmd:
    """Root mean square MMD to the prior's samples of n rows, whose mean a large pool stands for."""

    pool: Tensor
    """Float32 [m, Z]: prior samples, m > n."""
    bandwidth: float
    """Unit of the kernels' widths, shared by statistic and null."""
    within: float
    """Mean kernel over all pairs of pooled rows, each with itself among them."""
    num_samples: int
    """n."""

    def __call__(self, codes_nZ: Tensor) -> float:
        """Return the root mean square MMD of n codes to prior samples of n rows."""
        across = prior_match.mean_kernel(codes_nZ, self.pool, self.bandwidth)
        square = prior_match.mean_kernel_within(codes_nZ, self.bandwidth) + self.within - 2 * across
        # The pool's mean lies nearer to the prior's than that of n rows; by how much is known.
        fewer_rows = (1 / self.num_samples - 1 / len(self.pool)) * self._spread
        return math.sqrt(max(square + fewer_rows, 0.0))

    @property
    def null(self) -> float:
        """The root mean square MMD of two prior samples of n rows.

        Exact: the biased MMD squared is the squared distance of two independent means of n kernel
        features, each of which has this spread around the prior's.
        """
        return math.sqrt(2 * self._spread / self.num_samples)

    @property
    def _spread(self) -> float:
        """1 - E k(z, z') by all pairs of different pooled rows; k is 1 at distance 0."""
        m = len(self.pool)
        return 1 - (self.within * m - 1) / (m - 1)


@dataclass(frozen=True)
class PriorBaseline:
    """The part of scoring against one prior that does not depend on the codes."""

    prior_samples: Tensor
    """Float32 [n, Z]: what the two-sample classifier sees, the same at every evaluation."""
    sliced_wasserstein: SlicedWasserstein
    mmd: Mmd


def build_baseline(prior: Prior, num_samples: int, seed: int) -> PriorBaseline:
    """Draw the prior samples and measure the null; takes seconds at 10,000 samples.

    Args:
        prior: The prior p(z).
        num_samples: n, the number of codes that will be scored.
        seed: The run's seed; every draw is keyed by it.
    """
    draw = keyed_generator(seed, "evaluation/prior")
    return PriorBaseline(
        prior_samples=prior.sample(num_samples, draw).float(),
        sliced_wasserstein=_sliced_wasserstein(prior, num_samples, seed),
        mmd=_mmd(prior, num_samples, seed),
    )


def score(codes_nZ: Tensor, baseline: PriorBaseline, seed: int) -> dict[str, float]:
    """Return the metrics of the match between codes, float [n, Z], and the prior.

    Codes that are not finite give metrics that are not a number.
    """
    codes = codes_nZ.float()
    if not bool(codes.isfinite().all()):
        return dict.fromkeys(_NAMES, math.nan) | {"prior_match/num_samples": float(len(codes))}
    draw = keyed_generator(seed, "evaluation/c2st")
    accuracy = prior_match.c2st(codes, baseline.prior_samples, draw)
    values = (
        accuracy.value,
        accuracy.low,
        accuracy.high,
        _ratio(baseline.sliced_wasserstein(codes), baseline.sliced_wasserstein.null),
        _ratio(baseline.mmd(codes), baseline.mmd.null),
    )
    return dict(zip(_NAMES, values, strict=True)) | {"prior_match/num_samples": float(len(codes))}


_NAMES = (
    "prior_match/c2st",
    "prior_match/c2st_low",
    "prior_match/c2st_high",
    "prior_match/sliced_wasserstein",
    "prior_match/mmd",
)


def _ratio(value: float, null: float) -> float:
    """Return a statistic in units of its null; a prior that is one point has none to give."""
    return value / null if null > 0 else math.nan


def _sliced_wasserstein(prior: Prior, num_samples: int, seed: int) -> SlicedWasserstein:
    directions_ZP = prior_match.projections(prior.latent_dim, keyed_generator(seed, "projections"))
    draw = keyed_generator(seed, "evaluation/null")
    total = np.zeros((directions_ZP.shape[1], num_samples), dtype=np.float64)
    mean_square = 0.0
    for _ in range(NUM_SAMPLES):
        sample_nZ = prior.sample(num_samples, draw).float()
        sorted_Pn = prior_match.sorted_projections(sample_nZ, directions_ZP)
        total += sorted_Pn
        mean_square += np.square(sorted_Pn).mean(dtype=np.float64) / NUM_SAMPLES
    quantiles_Pn = total / NUM_SAMPLES
    variance = mean_square - np.square(quantiles_Pn).mean()
    return SlicedWasserstein(directions_ZP, quantiles_Pn.astype(np.float32), max(variance, 0.0))


def _mmd(prior: Prior, num_samples: int, seed: int) -> Mmd:
    kernel_rows = prior.sample(BANDWIDTH_ROWS, keyed_generator(seed, "evaluation/bandwidth"))
    bandwidth = prior_match.median_distance(kernel_rows.float())
    pool = prior.sample(POOL * num_samples, keyed_generator(seed, "evaluation/pool")).float()
    within = prior_match.mean_kernel_within(pool, bandwidth)
    return Mmd(pool, bandwidth, within, num_samples)
