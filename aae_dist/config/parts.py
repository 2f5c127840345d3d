"""What is trained: prior and method; `networks` holds the networks and the posterior."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aae_dist.config.networks import IMPORT_PATH
from aae_dist.config.section import Section


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


class CustomPrior(Section):
    """A prior of your own, by import path."""

    kind: Literal["custom"] = "custom"
    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`; the class is called with latent_dim and `arguments`."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the class, beside latent_dim."""


class AdversarialMethod(Section):
    """Adversarial autoencoder: reconstruction, discriminator update, generator update."""

    kind: Literal["adversarial"] = "adversarial"
    reconstruction_loss: Literal["sum_half", "mean", "bce"] = "sum_half"
    """Per image: half the summed squared error (the paper's), mean squared error, or summed BCE."""


class VariationalMethod(Section):
    """Variational autoencoder: reconstruction plus beta times KL(q(z|x) || p(z)), in one phase."""

    kind: Literal["variational"] = "variational"
    reconstruction_loss: Literal["sum_half", "mean", "bce"] = "sum_half"
    """Per image: half the summed squared error (the paper's), mean squared error, or summed BCE."""
    beta: NonNegativeFloat = 1.0
    """Weight of the KL term."""


class AutoencoderMethod(Section):
    """Plain autoencoder: the reconstruction phase alone; the prior only serves the metrics."""

    kind: Literal["autoencoder"] = "autoencoder"
    reconstruction_loss: Literal["sum_half", "mean", "bce"] = "sum_half"
    """Per image: half the summed squared error (the paper's), mean squared error, or summed BCE."""


Prior = Annotated[
    GaussianPrior | MixturePrior | SwissRollPrior | CustomPrior, Field(discriminator="kind")
]
Method = Annotated[
    AdversarialMethod | VariationalMethod | AutoencoderMethod, Field(discriminator="kind")
]
