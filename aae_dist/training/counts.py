"""The unit of weights for counts: how much of the loss a code can explain."""

import torch
from torch import Tensor

from aae_dist.losses import half_deviance, negative_binomial_log_prob, poisson_log_prob
from aae_dist.models.counts import log_normalized

LEAST = 0.02
"""Least unit, in half deviances of the mean: for counts of which a code explains nothing."""
MIN_SHARE = 0.05
"""Least rate that the PCA may predict, in rates of the mean profile."""
DISPERSION = 1.0
"""As at the start of training."""


def explainable_loss(likelihood: str, x_nCHW: Tensor, latent_dim: int) -> float:
    """Return how far the loss of the mean profile lies above that of a PCA, in nats per sample.

    The PCA has `latent_dim` components of log-normalized counts, fitted to the even samples and
    scored on the odd ones. For images the loss of the mean itself is such a unit; for counts most
    of it is noise that no code can explain.
    """
    x = x_nCHW.flatten(1).double()
    least = LEAST * float(half_deviance(likelihood, x).mean())
    fitted, scored = x[::2], x[1::2]
    if len(scored) < 2:
        return least
    library = fitted.sum(1).median().clamp_min(1)
    features, others = log_normalized(fitted, library), log_normalized(scored, library)
    mean = features.mean(0)
    rank = min(latent_dim, *features.shape)
    axes = torch.linalg.eigh((features - mean).T @ (features - mean))[1][:, -rank:]
    profile = fitted.sum(0) / fitted.sum().clamp_min(1)
    predicted = ((others - mean) @ axes @ axes.T + mean).expm1()
    predicted = torch.maximum(predicted, MIN_SHARE * library * profile)
    totals = scored.sum(1, keepdim=True)
    shares = predicted / predicted.sum(1, keepdim=True).clamp_min(1e-12)
    gain = _log_prob(likelihood, scored, shares * totals)
    gain -= _log_prob(likelihood, scored, profile * totals)
    return max(float(gain.sum(1).mean()), least)


def _log_prob(likelihood: str, x: Tensor, rates: Tensor) -> Tensor:
    if likelihood == "poisson":
        return poisson_log_prob(x, rates)
    return negative_binomial_log_prob(x, rates, torch.full_like(x, DISPERSION))
