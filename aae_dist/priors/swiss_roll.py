"""The swiss roll prior of the AAE paper (figure 4, semi-supervised regularization)."""

import math

import torch
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
