"""Priors to sample from only: swiss roll, sphere, one-hot classes, sets of vectors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from aae_dist.priors.prior import Prior


class SwissRollPrior(Prior):
    """Points of a 2-D spiral: angle and radius both grow with sqrt(u), u uniform in [0, 1].

    The spiral is a curve, so it has no density in the plane. Class k of K is u in [k/K, (k+1)/K).
    """

    def __init__(
        self,
        latent_dim: int = 2,
        radius: float = 3.0,
        num_turns: float = 2.0,
        num_classes: int = 10,
    ) -> None:
        """Take the outer radius, the number of turns and the number of classes."""
        super().__init__(latent_dim)
        self.num_classes: int = num_classes
        self.radius = radius
        self.num_turns = num_turns

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, 2) from the whole roll."""
        return self._points(torch.rand(num_samples, generator=generator))

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one sample, shape (N, 2), of each given piece of the roll."""
        u_N = torch.rand(len(labels_N), generator=generator)
        return self._points((labels_N + u_N) / self.num_classes)

    def _points(self, u_N: Tensor) -> Tensor:
        r_N = u_N.sqrt()
        angle_N = 2 * math.pi * self.num_turns * r_N
        return self.radius * r_N[:, None] * torch.stack([angle_N.cos(), angle_N.sin()], 1)


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


class CategoricalPrior(Prior):
    """One-hot vectors; every dimension is a class, all equally likely."""

    def __init__(self, latent_dim: int) -> None:
        """Take the number of classes."""
        super().__init__(latent_dim)
        self.num_classes: int = latent_dim

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        labels_N = torch.randint(self.latent_dim, (num_samples,), generator=generator)
        return self.sample_class(labels_N, generator)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Return the one-hot vectors, shape (N, Z), of the given classes; nothing is drawn."""
        return F.one_hot(labels_N, self.latent_dim).float()


class EmpiricalPrior(Prior):
    """Vectors drawn with replacement from a table, each equally likely."""

    def __init__(self, vectors_MZ: Tensor) -> None:
        """Take the table: float32, M >= 1 vectors of Z numbers."""
        super().__init__(vectors_MZ.shape[1])
        self.vectors_MZ = vectors_MZ

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        return self.vectors_MZ[
            torch.randint(len(self.vectors_MZ), (num_samples,), generator=generator)
        ]
