"""Priors p(z). For your own, derive from `Prior` and name it with `prior.kind=custom`.

Shapes: N samples, Z latent_dim, K modes or classes.
"""

import importlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.config.sections import model as sections
from aae_dist.errors import ConfigError
from aae_dist.losses import gaussian_log_density
from aae_dist.utils.tensors import one_hot_classes, to_device


class Prior(ABC):
    """A distribution over latent codes. Samples are float32 on the CPU; the caller moves them."""

    num_classes: int | None = None
    """Number of classes that `sample_class` knows; None when the prior has none."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim

    @property
    def parts(self) -> tuple["Part", ...]:
        """The independent parts that the encoder infers, in the order of their columns."""
        return (Part(slice(0, self.latent_dim), self),)

    @property
    def given(self) -> tuple["Part", ...]:
        """The parts of the code that hold the sample's label, each one-hot; none in most priors."""
        return ()

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw `num_samples` samples, float32 of shape (N, Z), from `generator` alone."""

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one sample, shape (N, Z), of each given class, from `generator` alone.

        Args:
            labels_N: int64 in [0, num_classes).
            generator: on the CPU.

        Raises:
            TypeError: the prior has no classes.
        """
        raise TypeError(f"{type(self).__name__} has no classes to sample from")

    def with_labels(self, z_NZ: Tensor, labels_N: Tensor) -> Tensor:
        """Return samples (N, Z) with the labels, one-hot, in the given parts; zeros for -1.

        Several given parts hold the combination that the label numbers (`ProductPrior`).
        """
        if not self.given:
            return z_NZ
        z_NZ = z_NZ.clone()
        classes = one_hot_classes(labels_N, [part.dims for part in self.given])
        for part, one_hot in zip(self.given, classes, strict=True):
            z_NZ[:, part.columns] = one_hot.to(z_NZ)
        return z_NZ

    def log_prob(self, z_NZ: Tensor) -> Tensor | None:
        """Return log p(z) in nats, shape (N), or None where the density is not known."""
        return None


@dataclass(frozen=True)
class Part:
    """Columns of the code that have a prior of their own."""

    columns: slice
    prior: Prior

    @property
    def dims(self) -> int:
        """Number of latent dimensions of the part."""
        return self.prior.latent_dim

    @property
    def is_categorical(self) -> bool:
        """Whether its codes are classes, one-hot or probabilities."""
        return isinstance(self.prior, CategoricalPrior)


class GaussianPrior(Prior):
    """p(z) = N(0, std^2 I)."""

    def __init__(self, latent_dim: int, std: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.std = std

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return self.std * torch.randn(num_samples, self.latent_dim, generator=generator)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        zero = torch.zeros_like(z_NZ)
        return gaussian_log_density(z_NZ, zero, zero + torch.tensor(self.std).log())


class LaplacePrior(Prior):
    """p(z) = prod exp(-|z_i| / scale) / (2 scale)."""

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.scale = scale

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        # The difference of two exponential variables.
        pair = torch.empty(2, num_samples, self.latent_dim).exponential_(generator=generator)
        return self.scale * (pair[0] - pair[1])

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        return (-z_NZ.abs() / self.scale - math.log(2 * self.scale)).sum(1)


class StudentTPrior(Prior):
    """z = scale * g / sqrt(c / k), with g ~ N(0, I), c chi-squared and k = degrees_of_freedom."""

    def __init__(self, latent_dim: int, degrees_of_freedom: int = 5, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.degrees_of_freedom = degrees_of_freedom
        self.scale = scale

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        k = self.degrees_of_freedom
        g_NZ = torch.randn(num_samples, self.latent_dim, generator=generator)
        c_N = torch.randn(num_samples, k, generator=generator).square().sum(1)
        return self.scale * g_NZ / (c_N / k).sqrt()[:, None]

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        k, dim = self.degrees_of_freedom, self.latent_dim
        constant = math.lgamma((k + dim) / 2) - math.lgamma(k / 2)
        constant -= dim / 2 * math.log(k * math.pi) + dim * math.log(self.scale)
        square_N = (z_NZ / self.scale).square().sum(1)
        return constant - (k + dim) / 2 * torch.log1p(square_N / k)


class UniformPrior(Prior):
    """p(z) is constant in the cube [-half_width, half_width]^Z."""

    def __init__(self, latent_dim: int, half_width: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.half_width = half_width

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        u_NZ = torch.rand(num_samples, self.latent_dim, generator=generator)
        return self.half_width * (2 * u_NZ - 1)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
        inside_N = (z_NZ.abs() <= self.half_width).all(1)
        log_density = -self.latent_dim * math.log(2 * self.half_width)
        return torch.where(inside_N, log_density, -math.inf)


class MixturePrior(Prior):
    """K = `num_modes` equally likely Gaussians on a circle, elongated along the radius.

    `std_radial` and `std_tangential` are the standard deviations along the radius, of length
    `radius`, and across it. Mode k stands at angle 2 pi k / K. Beyond two dimensions every pair of
    dimensions holds such a ring, and a sample has the same mode in all of them. As in Makhzani et
    al., arXiv 1511.05644, section 2.3.
    """

    def __init__(
        self,
        latent_dim: int,
        num_modes: int = 10,
        radius: float = 1.4,
        std_radial: float = 0.5,
        std_tangential: float = 0.1,
    ) -> None:
        super().__init__(latent_dim)
        self.num_classes: int = num_modes
        self.radius = radius
        self.stds = torch.tensor([std_radial, std_tangential])
        angles_K = torch.arange(num_modes) * (2 * math.pi / num_modes)
        cos, sin = angles_K.cos(), angles_K.sin()
        # Columns: the radial and the tangential direction of each mode.
        self.axes_K22 = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        labels_N = torch.randint(self.num_classes, (num_samples,), generator=generator)
        return self.sample_class(labels_N, generator)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        pairs = self.latent_dim // 2
        local_NP2 = torch.randn(len(labels_N), pairs, 2, generator=generator) * self.stds
        local_NP2[..., 0] += self.radius
        z_NP2 = torch.einsum("nij,npj->npi", self.axes_K22[labels_N], local_NP2)
        return torch.flatten(z_NP2, 1)

    def log_prob(self, z_NZ: Tensor) -> Tensor:
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


class SwissRollPrior(Prior):
    """Points of a 2-D spiral: angle and radius both grow with sqrt(u), u uniform in [0, 1].

    It has `num_turns` turns and ends at `radius`. The spiral is a curve, so it has no density in
    the plane. Class k of K is u in [k/K, (k+1)/K). As in Makhzani et al., arXiv 1511.05644, section
    2.3.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        radius: float = 3.0,
        num_turns: float = 2.0,
        num_classes: int = 10,
    ) -> None:
        super().__init__(latent_dim)
        self.num_classes: int = num_classes
        self.radius = radius
        self.num_turns = num_turns

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return self._points(torch.rand(num_samples, generator=generator))

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        u_N = torch.rand(len(labels_N), generator=generator)
        return self._points((labels_N + u_N) / self.num_classes)

    def _points(self, u_N: Tensor) -> Tensor:
        r_N = u_N.sqrt()
        angle_N = 2 * math.pi * self.num_turns * r_N
        return self.radius * r_N[:, None] * torch.stack([angle_N.cos(), angle_N.sin()], 1)


class SpherePrior(Prior):
    """Uniform on the surface |z| = radius, which has no volume, hence no density."""

    def __init__(self, latent_dim: int, radius: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.radius = radius

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        g_NZ = torch.randn(num_samples, self.latent_dim, generator=generator)
        samples: Tensor = self.radius * g_NZ / g_NZ.norm(dim=1, keepdim=True)
        return samples


class CategoricalPrior(Prior):
    """One-hot vectors; every dimension is a class, all equally likely."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.num_classes: int = latent_dim

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        labels_N = torch.randint(self.latent_dim, (num_samples,), generator=generator)
        return self.sample_class(labels_N, generator)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.nn.functional.one_hot(labels_N, self.latent_dim).float()


class EmpiricalPrior(Prior):
    """Vectors drawn with replacement from a table, each equally likely."""

    def __init__(self, vectors_MZ: Tensor) -> None:
        super().__init__(vectors_MZ.shape[1])
        self.vectors_MZ = vectors_MZ

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return self.vectors_MZ[
            torch.randint(len(self.vectors_MZ), (num_samples,), generator=generator)
        ]


class ProductPrior(Prior):
    """p(z) = product of the priors of its parts: they are independent."""

    def __init__(self, priors: Sequence[Prior], given: Sequence[int] = ()) -> None:
        """`given` are the numbers, from 0, of the parts that hold the sample's label.

        Of several it numbers the combinations of their classes, the last part's changing first,
        as `numpy.ravel_multi_index` does.
        """
        super().__init__(sum(prior.latent_dim for prior in priors))
        self.priors = tuple(priors)
        ends = list(itertools.accumulate(prior.latent_dim for prior in self.priors))
        starts = [0, *ends[:-1]]
        parts = [
            Part(slice(start, end), prior)
            for start, end, prior in zip(starts, ends, self.priors, strict=True)
        ]
        self._given = tuple(parts[number] for number in given)
        self._parts = tuple(part for part in parts if part not in self._given)
        first = [number for number, prior in enumerate(self.priors) if prior.num_classes][:1]
        self._with_classes = list(given) or first
        sizes = [self.priors[number].num_classes or 1 for number in self._with_classes]
        self._class_sizes = torch.Size(sizes)
        self.num_classes = math.prod(sizes) if sizes else None

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @property
    def given(self) -> tuple[Part, ...]:
        return self._given

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.cat([prior.sample(num_samples, generator) for prior in self.priors], 1)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (N, Z): the given parts, or the first with classes, by label, and the others."""
        if not self._with_classes:
            return super().sample_class(labels_N, generator)
        each = torch.unravel_index(labels_N, self._class_sizes)
        of_part = dict(zip(self._with_classes, each, strict=True))
        drawn = [
            prior.sample_class(of_part[number], generator)
            if number in of_part
            else prior.sample(len(labels_N), generator)
            for number, prior in enumerate(self.priors)
        ]
        return torch.cat(drawn, 1)

    def log_prob(self, z_NZ: Tensor) -> Tensor | None:
        if self._given:
            return None
        sums_N = torch.zeros_like(z_NZ[:, 0])
        for part in self.parts:
            log_density_N = part.prior.log_prob(z_NZ[:, part.columns])
            if log_density_N is None:
                return None
            sums_N = sums_N + log_density_N
        return sums_N


def matched_parts(prior: Prior) -> tuple[Part, ...]:
    """Return the parts whose codes are compared with prior samples: the continuous ones, if any."""
    continuous = tuple(part for part in prior.parts if not part.is_categorical)
    return continuous or prior.parts


PRIORS: dict[str, type[Prior]] = {
    "categorical": CategoricalPrior,
    "gaussian": GaussianPrior,
    "laplace": LaplacePrior,
    "mixture": MixturePrior,
    "sphere": SpherePrior,
    "student_t": StudentTPrior,
    "swiss_roll": SwissRollPrior,
    "uniform": UniformPrior,
}
"""By `kind`; each class takes latent_dim and the section's other fields."""


def build_prior(config: sections.Prior, latent_dim: int, vectors: Tensor | None = None) -> Prior:
    """Return the prior of a section, `config`; ConfigError if a custom one cannot be used.

    The kinds `data` and `run` draw from `vectors`, float32 (M, latent_dim).
    """
    match config:
        case sections.DataPrior() | sections.RunPrior():
            assert vectors is not None, "read by training.prior_vectors"
            return EmpiricalPrior(vectors)
        case sections.CustomPrior():
            return _import_prior(config, latent_dim)
        case sections.ProductPrior():
            given = [number for number, part in enumerate(config.parts) if part.given]
            priors = [build_prior(part.prior, part.dims) for part in config.parts]
            return ProductPrior(priors, given)
        case _:
            return PRIORS[config.kind](latent_dim, **config.model_dump(exclude={"kind"}))


def _import_prior(config: sections.CustomPrior, latent_dim: int) -> Prior:
    module, name = config.path.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
        # Asked before it is called: a saved configuration must not call whatever it names.
        if not (isinstance(found, type) and issubclass(found, Prior)):
            raise TypeError("it does not derive from aae_dist.priors.Prior")
        prior = found(latent_dim, **config.arguments)
        sample = prior.sample(3, torch.Generator().manual_seed(0)).clone()
        again = prior.sample(3, torch.Generator().manual_seed(0))
    except Exception as error:  # a user's code may raise anything; the user has to fix it
        raise ConfigError(
            f"prior.path: {config.path} failed with {type(error).__name__}: {error}; it must be a "
            "class that takes latent_dim and prior.arguments and has sample(num_samples, generator)"
        ) from error
    if tuple(sample.shape) != (3, latent_dim) or sample.dtype != torch.float32:
        raise ConfigError(
            f"prior.path: {config.path}.sample(3, generator) must be float32 of shape "
            f"(3, {latent_dim}); got {sample.dtype} of shape {tuple(sample.shape)}"
        )
    if not sample.isfinite().all():
        raise ConfigError(f"prior.path: {config.path}.sample gives numbers that are not finite")
    if not torch.equal(sample, again):
        raise ConfigError(
            f"prior.path: {config.path}.sample(3, generator) returns other numbers for an equal "
            "generator, so a resumed run would differ; draw from `generator` alone, as in "
            "torch.randn(num_samples, self.latent_dim, generator=generator)"
        )
    return prior
