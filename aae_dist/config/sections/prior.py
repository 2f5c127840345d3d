"""Priors p(z): what the codes shall be distributed like."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section
from aae_dist.config.sections.model import IMPORT_PATH


class GaussianPrior(Section):
    """p(z) = N(0, std^2 I)."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat = 1.0
    """Standard deviation of every latent dimension (the paper's likelihood runs use 5 on MNIST)."""


class MixturePrior(Section):
    """A ring of Gaussians, elongated along the radius; needs an even latent_dim."""

    kind: Literal["mixture"] = "mixture"
    num_modes: PositiveInt = 10
    """Number of Gaussians, placed evenly on a circle in every pair of dimensions."""
    radius: PositiveFloat = 1.4
    """Distance of each mode's mean from the origin, in every pair of dimensions."""
    std_radial: PositiveFloat = 0.5
    """Standard deviation along the radius."""
    std_tangential: PositiveFloat = 0.1
    """Standard deviation across the radius."""


class SwissRollPrior(Section):
    """Points on a spiral; exists in two dimensions only and has no density."""

    kind: Literal["swiss_roll"] = "swiss_roll"
    radius: PositiveFloat = 3.0
    """Radius at the outer end of the roll."""
    num_turns: PositiveFloat = 2.0
    """Turns from the centre to the outer end."""
    num_classes: PositiveInt = 10
    """Pieces of equal probability that a class label chooses among, from the centre outwards."""


class UniformPrior(Section):
    """Uniform in a cube around the origin."""

    kind: Literal["uniform"] = "uniform"
    half_width: PositiveFloat = 1.0
    """Every dimension reaches from minus this to this."""


class LaplacePrior(Section):
    """Independent Laplace distributions: a sharper peak and heavier tails than the Gaussian."""

    kind: Literal["laplace"] = "laplace"
    scale: PositiveFloat = 1.0
    """Mean distance from 0 in every dimension; the standard deviation is 1.41 times this."""


class StudentTPrior(Section):
    """Multivariate Student t: a Gaussian whose tails follow a power law."""

    kind: Literal["student_t"] = "student_t"
    degrees_of_freedom: Annotated[int, Field(ge=3, le=1000)] = 5
    """3 has the heaviest tails of finite variance; large numbers approach the Gaussian."""
    scale: PositiveFloat = 1.0
    """Scale of every dimension."""


class SpherePrior(Section):
    """Uniform on the surface of a sphere; has no density in the space around it."""

    kind: Literal["sphere"] = "sphere"
    radius: PositiveFloat = 1.0
    """Distance of every sample from the origin."""


class CategoricalPrior(Section):
    """One-hot vectors of latent_dim equally likely classes; see posterior.kind=categorical."""

    kind: Literal["categorical"] = "categorical"


class DataPrior(Section):
    """Vectors of a WebDataset, drawn with replacement; checkpoints keep a copy of them.

    Bad ones are left out, up to the part of `data.max_bad_fraction`.
    """

    kind: Literal["data"] = "data"
    vectors: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """Shards, as in data.train, of samples with a vector of model.latent_dim numbers."""
    key: str = "npy"
    """Field name of the vector."""
    max_vectors: PositiveInt = 10_000
    """Vectors that are read, spread evenly over all."""


class RunPrior(Section):
    """Codes of another run's training data, drawn with replacement; checkpoints keep a copy.

    They are means of q(z|x): less spread than the aggregated posterior of a run with
    posterior.kind=gaussian or universal. Bad samples are left out, as for `data`.
    """

    kind: Literal["run"] = "run"
    uri: str
    """Folder of that run, which has the same model.latent_dim."""
    max_vectors: PositiveInt = 10_000
    """Samples that are encoded, spread evenly over all."""


class CustomPrior(Section):
    """A prior of your own, by import path."""

    kind: Literal["custom"] = "custom"
    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`; the class is called with latent_dim and `arguments`."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the class, beside latent_dim."""


Prior = Annotated[
    GaussianPrior
    | MixturePrior
    | SwissRollPrior
    | UniformPrior
    | LaplacePrior
    | StudentTPrior
    | SpherePrior
    | CategoricalPrior
    | DataPrior
    | RunPrior
    | CustomPrior,
    Field(discriminator="kind"),
]
