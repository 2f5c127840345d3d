"""The isotropic Gaussian prior."""

import torch
from torch import Tensor

from aae_dist.losses import gaussian_log_density
from aae_dist.priors.prior import Prior


class GaussianPrior(Prior):
    """p(z) = N(0, std^2 I)."""

    def __init__(self, latent_dim: int, std: float = 1.0) -> None:
        """Take the number of dimensions and the standard deviation of each."""
        super().__init__(latent_dim)
        self.std = std

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        return self.std * torch.randn(num_samples, self.latent_dim, generator=generator)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (N)."""
        zero = torch.zeros_like(z_NZ)
        return gaussian_log_density(z_NZ, zero, zero + torch.tensor(self.std).log())
