"""The uniform prior."""

import math

import torch
from torch import Tensor

from aae_dist.priors.prior import Prior


class UniformPrior(Prior):
    """p(z) is constant in the cube [-half_width, half_width]^Z."""

    def __init__(self, latent_dim: int, half_width: float = 1.0) -> None:
        """Take the number of dimensions and half the cube's side."""
        super().__init__(latent_dim)
        self.half_width = half_width

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        u_NZ = torch.rand(num_samples, self.latent_dim, generator=generator)
        return self.half_width * (2 * u_NZ - 1)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (N); minus infinity outside the cube."""
        inside_N = (z_NZ.abs() <= self.half_width).all(1)
        log_density = -self.latent_dim * math.log(2 * self.half_width)
        return torch.where(inside_N, log_density, -math.inf)
