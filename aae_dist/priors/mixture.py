"""A ring of Gaussians: the mixture of ten 2-D Gaussians of the AAE paper (figure 2, right)."""

import math

import torch
from torch import Tensor

from aae_dist.distributed.host_copy import to_device
from aae_dist.losses import gaussian_log_density
from aae_dist.priors.prior import Prior


class MixturePrior(Prior):
    """K equally likely Gaussians on a circle, elongated along the radius.

    Mode k stands at angle 2 pi k / K. Beyond two dimensions every pair of dimensions holds such a
    ring, and a sample has the same mode in all of them.
    """

    def __init__(
        self,
        latent_dim: int,
        num_modes: int = 10,
        radius: float = 1.4,
        std_radial: float = 0.5,
        std_tangential: float = 0.1,
    ) -> None:
        """Take an even number of dimensions and the shape of the ring."""
        super().__init__(latent_dim)
        self.num_classes: int = num_modes
        self.radius = radius
        self.stds = torch.tensor([std_radial, std_tangential])
        angles_K = torch.arange(num_modes) * (2 * math.pi / num_modes)
        cos, sin = angles_K.cos(), angles_K.sin()
        # Columns: the radial and the tangential direction of each mode.
        self.axes_K22 = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z) from all modes alike."""
        labels_N = torch.randint(self.num_classes, (num_samples,), generator=generator)
        return self.sample_class(labels_N, generator)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one sample, shape (N, Z), of each given mode."""
        pairs = self.latent_dim // 2
        local_NP2 = torch.randn(len(labels_N), pairs, 2, generator=generator) * self.stds
        local_NP2[..., 0] += self.radius
        z_NP2 = torch.einsum("nij,npj->npi", self.axes_K22[labels_N], local_NP2)
        return torch.flatten(z_NP2, 1)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (N)."""
        centre = torch.tensor([self.radius, 0.0])
        axes_K22, stds, centre = (
            to_device(t, z_NZ.device, z_NZ.dtype) for t in (self.axes_K22, self.stds, centre)
        )
        local_NKP2 = torch.einsum("kij,npi->nkpj", axes_K22, z_NZ.unflatten(1, (-1, 2)))
        mean = centre.expand_as(local_NKP2).flatten(2)
        log_std = stds.log().expand_as(local_NKP2).flatten(2)
        local_NKZ = local_NKP2.flatten(2)
        log_density_NK: Tensor = gaussian_log_density(
            local_NKZ.flatten(0, 1), mean.flatten(0, 1), log_std.flatten(0, 1)
        ).unflatten(0, local_NKZ.shape[:2])
        return log_density_NK.logsumexp(1) - math.log(self.num_classes)
