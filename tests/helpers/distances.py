"""Distances of two samples, from the parts that the product compares many samples by."""

import math

import numpy as np
from torch import Tensor

from aae_dist.evaluation import prior_match


def sliced_wasserstein(a_nZ: Tensor, b_nZ: Tensor, directions_ZP: Tensor) -> float:
    """Sliced Wasserstein-2 distance between two samples of equal size, in units of the codes.

    The square root of the mean, over directions, of the squared one-dimensional Wasserstein-2
    distance, which for equal sizes pairs the sorted projections.
    """
    gap_Pn = prior_match.sorted_projections(a_nZ, directions_ZP)
    gap_Pn -= prior_match.sorted_projections(b_nZ, directions_ZP)
    return math.sqrt(np.square(gap_Pn).mean(dtype=np.float64))


def mmd(a_nZ: Tensor, b_mZ: Tensor, bandwidth: float) -> float:
    """Square root of the biased squared maximum mean discrepancy (Gretton et al. 2012, eq. 5).

    The kernel is the mean of Gaussian kernels with standard deviations `SCALES` * `bandwidth`.
    Exact, in blocks of at most 512 x 512 kernel values, so memory does not grow with n.

    Args:
        a_nZ: One sample, float [n, Z].
        b_mZ: The other, float [m, Z].
        bandwidth: Unit of the kernels' widths: `prior_match.median_distance` of the prior.
    """
    within = prior_match.mean_kernel_within(a_nZ, bandwidth) + prior_match.mean_kernel_within(
        b_mZ, bandwidth
    )
    return math.sqrt(max(within - 2 * prior_match.mean_kernel(a_nZ, b_mZ, bandwidth), 0.0))
