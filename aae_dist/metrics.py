"""How well codes match a prior, for codes from anywhere: the scores of runs as plain functions.

Shapes: n codes, Z latent_dim. The prior is an object of `aae_dist.priors`, or one's own subclass of
`aae_dist.priors.Prior`. Scores of different n are not comparable (docs/metrics.md).
"""

import torch

from aae_dist.evaluation.prior_match import Accuracy, build_baseline, c2st as _c2st, score
from aae_dist.priors import Prior
from aae_dist.utils.tensors import Values, as_tensor, keyed_generator

__all__ = ["Accuracy", "c2st", "mmd", "prior_match", "sliced_wasserstein"]

MIN_CODES = 4


def c2st(codes: Values, prior: Prior, seed: int = 0) -> Accuracy:
    """Return the held-out accuracy of a classifier that tells codes from prior samples.

    0.5 is a perfect match, 1.0 means disjoint samples (Lopez-Paz and Oquab, arXiv 1610.06545). A
    network with two hidden layers of 256 trains on half of n codes and n prior samples.

    Args:
        codes: floats (n, Z), n >= 4, finite: a tensor, an array or a list of n of them.
        prior: has `latent_dim` Z.
        seed: of prior samples, halves and network.

    Returns:
        `value`, and the bounds `low` and `high` of its 95 % Wilson interval.

    Raises:
        ValueError: the codes have another shape, are too few, or are not finite.
    """
    z_nZ = _checked(codes, prior)
    prior_nZ = prior.sample(len(z_nZ), keyed_generator(seed, "evaluation/prior")).float()
    return _c2st(z_nZ, prior_nZ, keyed_generator(seed, "evaluation/c2st"))


def sliced_wasserstein(codes: Values, prior: Prior, seed: int = 0) -> float:
    """Return the sliced Wasserstein-2 distance to the prior, over that of two prior samples.

    1.0 is a perfect match (Bonneel et al. 2015). Arguments and errors as for `c2st`: codes (n, Z),
    and the seed of prior samples and directions.
    """
    return prior_match(codes, prior, seed)["prior_match/sliced_wasserstein"]


def mmd(codes: Values, prior: Prior, seed: int = 0) -> float:
    """Return the maximum mean discrepancy to the prior, over that of two prior samples.

    1.0 is a perfect match (Gretton et al. 2012, equation 5, Gaussian kernels at 5 scales).
    Arguments and errors as for `c2st`: codes (n, Z), and the seed of prior samples.
    """
    return prior_match(codes, prior, seed)["prior_match/mmd"]


def prior_match(codes: Values, prior: Prior, seed: int = 0) -> dict[str, float]:
    """Return all scores by the names that runs give them: `prior_match/c2st` and others.

    Equal to those of a run whose `run.seed` is `seed`, for the same codes (n, Z). Arguments and
    errors as for `c2st`.
    """
    z_nZ = _checked(codes, prior)
    return score(z_nZ, build_baseline(prior, len(z_nZ), seed), seed)


def _checked(codes: Values, prior: Prior) -> torch.Tensor:
    if not isinstance(prior, Prior):
        raise ValueError(
            "prior should be an object with a size, such as aae_dist.priors.GaussianPrior(2); got "
            f"{prior!r:.60}"
        )
    z_nZ = as_tensor("codes", codes).detach().cpu()
    if z_nZ.ndim != 2 or z_nZ.shape[1] != prior.latent_dim or len(z_nZ) < MIN_CODES:
        raise ValueError(
            f"codes must have shape (n, {prior.latent_dim}), as the prior, and n >= {MIN_CODES}; "
            f"got {tuple(z_nZ.shape)}"
        )
    if z_nZ.dtype == torch.bool or z_nZ.is_complex() or not bool(z_nZ.isfinite().all()):
        raise ValueError("codes must be finite real numbers")
    return z_nZ.float()
