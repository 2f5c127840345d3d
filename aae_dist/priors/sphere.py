"""The uniform prior on a sphere."""

import torch
from torch import Tensor

from aae_dist.priors.prior import Prior


class SpherePrior(Prior):
    """Uniform on the surface |z| = radius, which has no volume, hence no density."""

    def __init__(self, latent_dim: int, radius: float = 1.0) -> None:
        """Take the number of dimensions of the space around the sphere, and its radius."""
        super().__init__(latent_dim)
        self.radius = radius

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        g_NZ = torch.randn(num_samples, self.latent_dim, generator=generator)
        samples: Tensor = self.radius * g_NZ / g_NZ.norm(dim=1, keepdim=True)
        return samples
