"""The Laplace prior."""

import math

import torch
from torch import Tensor

from aae_dist.priors.prior import Prior


class LaplacePrior(Prior):
    """p(z) = prod exp(-|z_i| / scale) / (2 scale)."""

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        """Take the number of dimensions and the scale of each."""
        super().__init__(latent_dim)
        self.scale = scale

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z): the difference of two exponential variables."""
        pair = torch.empty(2, num_samples, self.latent_dim).exponential_(generator=generator)
        return self.scale * (pair[0] - pair[1])

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (N)."""
        return (-z_NZ.abs() / self.scale - math.log(2 * self.scale)).sum(1)
