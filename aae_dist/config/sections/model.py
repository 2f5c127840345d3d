"""The networks: their kind and sizes, those of the user's own, and the posterior on the encoder."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from aae_dist.config.sections import Section

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class OwnNetwork(Section):
    """A network of your own, by import path."""

    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`, a torch module; docs/networks.md says what it is called with."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the class, beside those that its role gives it."""


class _Model(Section):
    latent_dim: PositiveInt = 8
    """Number of dimensions of the latent code z."""
    discriminator_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the discriminator."""
    discriminator_spectral_norm: bool = False
    """Divide every weight matrix of the discriminator by its largest singular value."""
    decoder_output: Literal["sigmoid", "linear"] = "sigmoid"
    """Last function of the decoder: sigmoid for pixels in [0, 1], linear for unbounded values."""
    encoder: OwnNetwork | None = None
    """A class of your own instead of this kind's encoder."""
    decoder: OwnNetwork | None = None
    """A class of your own instead of this kind's decoder."""
    discriminator: OwnNetwork | None = None
    """A class of your own instead of the fully connected discriminator."""


class MlpModel(_Model):
    """Fully connected networks, as in the paper's likelihood experiment (appendix A.1)."""

    kind: Literal["mlp"] = "mlp"
    encoder_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the encoder, input side first."""
    decoder_widths: Widths = (1000, 1000)
    """Hidden layer sizes of the decoder, code side first."""


class ConvModel(_Model):
    """Convolutions that halve the image until its shorter side has 4 pixels, and mirror it back."""

    kind: Literal["conv"] = "conv"
    encoder_width: PositiveInt = 32
    """Channels after the first halving; each further one doubles them, up to 8 times these."""
    encoder_depth: PositiveInt = 1
    """Convolutions at each resolution, the halving one included."""
    decoder_width: PositiveInt = 32
    """Channels before the last doubling of the image; up to 8 times these at 4 pixels."""
    decoder_depth: PositiveInt = 1
    """Convolutions at each resolution, the doubling one included."""


class ResnetModel(_Model):
    """As conv, with residual blocks of two convolutions each at every resolution."""

    kind: Literal["resnet"] = "resnet"
    encoder_width: PositiveInt = 32
    """Channels after the first halving; each further one doubles them, up to 8 times these."""
    encoder_depth: NonNegativeInt = 1
    """Residual blocks at each resolution, after the halving convolution."""
    decoder_width: PositiveInt = 32
    """Channels before the last doubling of the image; up to 8 times these at 4 pixels."""
    decoder_depth: NonNegativeInt = 1
    """Residual blocks at each resolution, before the doubling convolution."""


class DeterministicPosterior(Section):
    """q(z|x) is a point: the encoder's output is the code."""

    kind: Literal["deterministic"] = "deterministic"


class GaussianPosterior(Section):
    """q(z|x) is a diagonal Gaussian whose mean and log standard deviation the encoder gives."""

    kind: Literal["gaussian"] = "gaussian"


class UniversalPosterior(Section):
    """q(z|x) has any shape: z = f(x, noise), the encoder also reads noise (paper, section 2)."""

    kind: Literal["universal"] = "universal"
    noise_dim: PositiveInt = 8
    """Numbers of standard normal noise that the encoder reads beside each sample."""


class CategoricalPosterior(Section):
    """q(z|x) is a class: the code is the softmax of the encoder's outputs, as in the paper."""

    kind: Literal["categorical"] = "categorical"
    straight_through: bool = False
    """Codes are one-hot, and gradients those of the softmax (Bengio et al. 2013)."""


Model = Annotated[MlpModel | ConvModel | ResnetModel, Field(discriminator="kind")]
Posterior = Annotated[
    DeterministicPosterior | GaussianPosterior | UniversalPosterior | CategoricalPosterior,
    Field(discriminator="kind"),
]
