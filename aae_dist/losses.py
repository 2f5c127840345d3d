"""Losses as pure functions, one value a sample, so that callers can weight and mask samples.

Shapes: B samples on this rank, C H W image, Z latent_dim.
Source: Makhzani et al., Adversarial Autoencoders, arXiv 1511.05644 (AAE).
"""

import math

import torch.nn.functional as F
from torch import Tensor


def squared_error_half_sum(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return half the summed squared error of each image, shape (B): the cost of the AAE paper."""
    return 0.5 * (x_hat_BCHW - x_BCHW).square().flatten(1).sum(1)


def squared_error_mean(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return the mean squared error over pixels and channels of each image, shape (B)."""
    return (x_hat_BCHW - x_BCHW).square().flatten(1).mean(1)


def cross_entropy_sum(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return the summed binary cross-entropy of each image, shape (B); both in [0, 1]."""
    return F.binary_cross_entropy(x_hat_BCHW, x_BCHW, reduction="none").flatten(1).sum(1)


RECONSTRUCTION_LOSSES = {
    "sum_half": squared_error_half_sum,
    "mean": squared_error_mean,
    "bce": cross_entropy_sum,
}


def discriminator_loss(logits_prior_B: Tensor, logits_codes_B: Tensor) -> Tensor:
    """Return -log D(z_prior) - log(1 - D(z)), shape (B): prior samples are the positives.

    The discriminator's half of the AAE min-max game, with D = sigmoid(logit).
    """
    return F.softplus(-logits_prior_B) + F.softplus(logits_codes_B)


def generator_loss(logits_codes_B: Tensor) -> Tensor:
    """Return -log D(z), shape (B): the non-saturating form (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-logits_codes_B)


def gaussian_kl(mean_BZ: Tensor, log_std_BZ: Tensor, prior_std: float) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, prior_std^2 I)) in nats, shape (B).

    Kingma and Welling, arXiv 1312.6114, appendix B, with a prior of any scale.
    """
    ratio_BZ = (log_std_BZ.exp().square() + mean_BZ.square()) / prior_std**2
    return (0.5 * (ratio_BZ - 1.0) - log_std_BZ + math.log(prior_std)).sum(1)


def gaussian_log_density(z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor) -> Tensor:
    """Return log N(z; mean, std^2) in nats, shape (B)."""
    scaled_BZ = (z_BZ - mean_BZ) * (-log_std_BZ).exp()
    return (-0.5 * scaled_BZ.square() - log_std_BZ - 0.5 * math.log(2 * math.pi)).sum(1)
