"""Priors with a density: Gaussian, Laplace, Student t, uniform, and a ring of Gaussians."""

import math

import torch
from torch import Tensor

from aae_dist.losses import gaussian_log_density
from aae_dist.priors.prior import Prior
from aae_dist.utils.device import to_device


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
        """Draw samples of shape (N, Z) from all modes with equal probability."""
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
