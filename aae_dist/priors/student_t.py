"""The multivariate Student t prior."""

import math

import torch
from torch import Tensor

from aae_dist.priors.prior import Prior


class StudentTPrior(Prior):
    """z = scale * g / sqrt(c / k), with g ~ N(0, I) and c chi-squared with k degrees of freedom."""

    def __init__(self, latent_dim: int, degrees_of_freedom: int = 5, scale: float = 1.0) -> None:
        """Take the number of dimensions, k and the scale of each dimension."""
        super().__init__(latent_dim)
        self.degrees_of_freedom = degrees_of_freedom
        self.scale = scale

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        k = self.degrees_of_freedom
        g_NZ = torch.randn(num_samples, self.latent_dim, generator=generator)
        c_N = torch.randn(num_samples, k, generator=generator).square().sum(1)
        return self.scale * g_NZ / (c_N / k).sqrt()[:, None]

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (N)."""
        k, dim = self.degrees_of_freedom, self.latent_dim
        constant = math.lgamma((k + dim) / 2) - math.lgamma(k / 2)
        constant -= dim / 2 * math.log(k * math.pi) + dim * math.log(self.scale)
        square_N = (z_NZ / self.scale).square().sum(1)
        return constant - (k + dim) / 2 * torch.log1p(square_N / k)
