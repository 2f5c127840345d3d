"""Posteriors q(z|x): how the encoder's output becomes a code.

Shapes: B samples, Z latent_dim, P = outputs_per_dim * Z encoder outputs.
"""

from typing import Protocol

from torch import Tensor


class Posterior(Protocol):
    """Turns encoder outputs into codes."""

    outputs_per_dim: int
    """Encoder outputs for each latent dimension."""
    is_stochastic: bool
    """Whether `sample` uses its noise."""

    def sample(self, outputs_BP: Tensor, noise_BZ: Tensor) -> Tensor:
        """Return a code of q(z|x), shape (B, Z), from standard normal noise."""

    def mean(self, outputs_BP: Tensor) -> Tensor:
        """Return the mean of q(z|x), shape (B, Z)."""


class DeterministicPosterior:
    """The encoder's output is the code; all of q(z)'s spread comes from the data."""

    outputs_per_dim = 1
    is_stochastic = False

    def sample(self, outputs_BP: Tensor, noise_BZ: Tensor) -> Tensor:
        """Return the outputs themselves."""
        return outputs_BP

    def mean(self, outputs_BP: Tensor) -> Tensor:
        """Return the outputs themselves."""
        return outputs_BP


class GaussianPosterior:
    """A diagonal Gaussian; the encoder gives its mean and log standard deviation.

    Reparameterised as in Kingma and Welling, arXiv 1312.6114, section 2.4.
    """

    outputs_per_dim = 2
    is_stochastic = True

    def sample(self, outputs_BP: Tensor, noise_BZ: Tensor) -> Tensor:
        """Return mean + std * noise."""
        mean_BZ, log_std_BZ = self.parameters(outputs_BP)
        return mean_BZ + log_std_BZ.exp() * noise_BZ

    def mean(self, outputs_BP: Tensor) -> Tensor:
        """Return the mean."""
        return self.parameters(outputs_BP)[0]

    def parameters(self, outputs_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, each of shape (B, Z)."""
        mean_BZ, log_std_BZ = outputs_BP.chunk(2, dim=1)
        return mean_BZ, log_std_BZ
