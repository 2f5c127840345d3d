"""Posteriors q(z|x): how the encoder's output becomes a code.

Shapes: B samples, Z latent_dim, P = outputs_per_dim * Z encoder outputs, N noise numbers.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Posterior(Protocol):
    """Turns encoder outputs into codes."""

    outputs_per_dim: int
    """Encoder outputs for each latent dimension."""
    encoder_noise_dim: int
    """N if the encoder itself reads the noise, else 0."""

    def noise_dim(self, latent_dim: int) -> int:
        """Return N, the number of standard normal numbers per sample; 0 for none."""

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return a code of q(z|x), shape (B, Z), from standard normal noise."""

    def mean(self, outputs_BP: Tensor) -> Tensor:
        """Return the mean of q(z|x), shape (B, Z)."""


class DeterministicPosterior:
    """The encoder's output is the code; all of q(z)'s spread comes from the data."""

    outputs_per_dim = 1
    encoder_noise_dim = 0

    def noise_dim(self, latent_dim: int) -> int:
        return 0

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        return outputs_BP

    def mean(self, outputs_BP: Tensor) -> Tensor:
        return outputs_BP


class UniversalPosterior(DeterministicPosterior):
    """z = f(x, noise): the encoder reads the noise, so q(z|x) may have any shape.

    The universal approximator posterior of the AAE paper, section 2.1. The code of zero
    noise stands in for the mean of q, which is unknown.
    """

    def __init__(self, noise_dim: int) -> None:
        """Take N."""
        self.encoder_noise_dim = noise_dim

    def noise_dim(self, latent_dim: int) -> int:
        return self.encoder_noise_dim


class CategoricalPosterior(DeterministicPosterior):
    """The code is a class: softmax of the outputs, as q(y|x) in the AAE paper (section 4)."""

    def __init__(self, straight_through: bool = False) -> None:
        """Take whether codes are rounded to one-hot vectors, with the gradients of the softmax."""
        self.straight_through = straight_through

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        return self.mean(outputs_BP)

    def mean(self, outputs_BP: Tensor) -> Tensor:
        soft_BZ = outputs_BP.softmax(1)
        if not self.straight_through:
            return soft_BZ
        hard_BZ = F.one_hot(soft_BZ.argmax(1), soft_BZ.shape[1]).to(soft_BZ)
        return hard_BZ + (soft_BZ - soft_BZ.detach())


class GaussianPosterior:
    """A diagonal Gaussian; the encoder gives its mean and log standard deviation.

    Reparameterised as in Kingma and Welling, arXiv 1312.6114, section 2.4.
    """

    outputs_per_dim = 2
    encoder_noise_dim = 0

    def noise_dim(self, latent_dim: int) -> int:
        return latent_dim

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        mean_BZ, log_std_BZ = self.parameters(outputs_BP)
        return mean_BZ + log_std_BZ.exp() * noise_BN

    def mean(self, outputs_BP: Tensor) -> Tensor:
        return self.parameters(outputs_BP)[0]

    def parameters(self, outputs_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, each of shape (B, Z)."""
        mean_BZ, log_std_BZ = outputs_BP.chunk(2, dim=1)
        return mean_BZ, log_std_BZ


def run_encoder(
    encoder: nn.Module, posterior: Posterior, x_BCHW: Tensor, noise_BN: Tensor
) -> Tensor:
    """Return the encoder's outputs, shape (B, P); it reads the noise if the posterior needs it."""
    inputs = (x_BCHW, noise_BN) if posterior.encoder_noise_dim else (x_BCHW,)
    outputs_BP: Tensor = encoder(*inputs)
    return outputs_BP
