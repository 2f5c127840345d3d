"""Sections model and posterior: networks, custom networks, and the encoder's distribution."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from aae_dist.config.sections import Section

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class OwnNetwork(Section):
    """A custom network, by import path."""

    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`, a torch module; docs/networks.md lists its arguments."""
    arguments: dict[str, Any] = {}
    """Further keyword arguments of the class."""


class _Model(Section):
    latent_dim: PositiveInt = 8
    """Number of dimensions of the latent code z."""
    discriminator_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the discriminator."""
    discriminator_spectral_norm: bool = False
    """Divide every weight matrix of the discriminator by its largest singular value."""
    decoder_output: Literal["sigmoid", "linear"] = "sigmoid"
    """Output activation of the decoder: sigmoid for pixels in [0, 1], linear for unbounded
    values."""
    encoder: OwnNetwork | None = None
    """A custom class that replaces this kind's encoder."""
    decoder: OwnNetwork | None = None
    """A custom class that replaces this kind's decoder."""
    discriminator: OwnNetwork | None = None
    """A custom class that replaces the fully connected discriminator."""


class MlpModel(_Model):
    """Fully connected networks, as in the paper's likelihood experiment (appendix A.1)."""

    kind: Literal["mlp"] = "mlp"
    encoder_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the encoder, input side first."""
    decoder_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the decoder, code side first."""


class ConvModel(_Model):
    """Convolutions that halve images to 4 pixels on the shorter side, mirrored in the decoder."""

    kind: Literal["conv"] = "conv"
    encoder_width: PositiveInt = 32
    """Channels after the first halving; each further halving doubles them, up to 8 times this."""
    encoder_depth: PositiveInt = 1
    """Convolutions per resolution, including the strided one."""
    decoder_width: PositiveInt = 32
    """Channels before the last upsampling; up to 8 times as many at 4 pixels."""
    decoder_depth: PositiveInt = 1
    """Convolutions per resolution, including the upsampling one."""


class ResnetModel(_Model):
    """Like conv, with residual blocks of two convolutions at each resolution."""

    kind: Literal["resnet"] = "resnet"
    encoder_width: PositiveInt = 32
    """Channels after the first halving; each further halving doubles them, up to 8 times this."""
    encoder_depth: NonNegativeInt = 1
    """Residual blocks per resolution, after the strided convolution."""
    decoder_width: PositiveInt = 32
    """Channels before the last upsampling; up to 8 times as many at 4 pixels."""
    decoder_depth: NonNegativeInt = 1
    """Residual blocks per resolution, before the upsampling convolution."""


class DeterministicPosterior(Section):
    """q(z|x) is a point mass: the encoder's output is the code."""

    kind: Literal["deterministic"] = "deterministic"


class GaussianPosterior(Section):
    """q(z|x) is a diagonal Gaussian; the encoder outputs its mean and log standard deviation."""

    kind: Literal["gaussian"] = "gaussian"


class UniversalPosterior(Section):
    """q(z|x) of any shape: z = f(x, noise), the encoder also reads noise (paper, section 2)."""

    kind: Literal["universal"] = "universal"
    noise_dim: PositiveInt = 8
    """Dimensions of the standard normal noise that the encoder reads with each sample."""


class CategoricalPosterior(Section):
    """q(z|x) is categorical: the code is the softmax of the encoder's outputs, as in the paper."""

    kind: Literal["categorical"] = "categorical"
    straight_through: bool = False
    """Codes are one-hot; gradients are those of the softmax (Bengio et al. 2013)."""


Model = Annotated[MlpModel | ConvModel | ResnetModel, Field(discriminator="kind")]
Posterior = Annotated[
    DeterministicPosterior | GaussianPosterior | UniversalPosterior | CategoricalPosterior,
    Field(discriminator="kind"),
]
