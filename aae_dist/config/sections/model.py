"""Sections model, posterior and prior: networks, the encoder's distribution, what codes match."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from aae_dist.config.sections import Free, NonNegativeInt, PositiveInt, Section

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class OwnNetwork(Section):
    """A custom network, by import path."""

    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`, a torch module; docs/networks.md lists its arguments."""
    arguments: Free = {}
    """Further keyword arguments of the class."""
    weights: str | None = None
    """Local safetensors file of weights to start from, by the network's own names; it may hold a
    part of them. Every node reads it when a run starts; checkpoints hold what came of it."""


class ClusterHeads(Section):
    """One vector per class, its head, in the space of the style (paper, section 7).

    The decoder reads the sum of the class's head and the style, so that class and style share a map
    of few dimensions. It needs `prior.kind: product` with one categorical part and one other.
    """

    distance: PositiveFloat = 3.0
    """Heads nearer to each other than this are pushed apart; in units of the style."""
    weight: PositiveFloat = 1.0
    """Factor on what is missing to the distance, summed over pairs of heads, in the units of the
    reconstruction loss, to which it is added."""


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
    cluster_heads: ClusterHeads | None = None
    """Class vectors that the decoder reads with the style, for dimensionality reduction."""
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


class GaussianPrior(Section):
    """p(z) = N(0, std^2 I)."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat = 1.0
    """Standard deviation per latent dimension (the paper's likelihood runs on MNIST use 5)."""


class MixturePrior(Section):
    """Gaussians on a circle, elongated along the radius; needs an even latent_dim."""

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
    """Points on a spiral; for two dimensions only, without a density."""

    kind: Literal["swiss_roll"] = "swiss_roll"
    radius: PositiveFloat = 3.0
    """Radius at the outer end of the roll."""
    num_turns: PositiveFloat = 2.0
    """Number of turns from the centre to the outer end."""
    num_classes: PositiveInt = 10
    """Number of pieces of equal probability, one per class, from the centre outwards."""


class UniformPrior(Section):
    """Uniform in a cube around the origin."""

    kind: Literal["uniform"] = "uniform"
    half_width: PositiveFloat = 1.0
    """Every dimension ranges from minus this to this."""


class LaplacePrior(Section):
    """Independent Laplace distributions: a sharper peak and heavier tails than a Gaussian."""

    kind: Literal["laplace"] = "laplace"
    scale: PositiveFloat = 1.0
    """Mean absolute value per dimension; the standard deviation is 1.41 times this."""


class StudentTPrior(Section):
    """Multivariate Student t distribution, whose tails follow a power law."""

    kind: Literal["student_t"] = "student_t"
    degrees_of_freedom: Annotated[int, Field(ge=3, le=1000)] = 5
    """3 gives the heaviest tails with finite variance; large numbers approach a Gaussian."""
    scale: PositiveFloat = 1.0
    """Scale per dimension."""


class SpherePrior(Section):
    """Uniform on the surface of a sphere; without a density in the surrounding space."""

    kind: Literal["sphere"] = "sphere"
    radius: PositiveFloat = 1.0
    """Distance of every sample from the origin."""


class CategoricalPrior(Section):
    """One-hot vectors of latent_dim equally likely classes; see posterior.kind=categorical."""

    kind: Literal["categorical"] = "categorical"


class DataPrior(Section):
    """Vectors of a WebDataset, drawn with replacement; checkpoints keep a copy of them.

    Bad samples are skipped, up to a fraction of `data.max_bad_fraction`.
    """

    kind: Literal["data"] = "data"
    vectors: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """Shards, as in data.train; each sample has a vector of model.latent_dim numbers."""
    key: str = "npy"
    """Field of the vector."""
    max_vectors: PositiveInt = 10_000
    """Number of vectors to read, spread evenly over the data set."""


class RunPrior(Section):
    """Codes of another run's training data, drawn with replacement; checkpoints keep a copy.

    The codes are means of q(z|x): for a run with posterior.kind=gaussian or universal they spread
    less than its aggregated posterior. Bad samples are skipped, as for `data`.
    """

    kind: Literal["run"] = "run"
    uri: str
    """URI of that run, which must have the same model.latent_dim."""
    max_vectors: PositiveInt = 10_000
    """Number of samples to encode, spread evenly over the data set."""


class CustomPrior(Section):
    """A custom prior, by import path."""

    kind: Literal["custom"] = "custom"
    path: str = Field(pattern=IMPORT_PATH)
    """`package.module:Class`; the class is called with latent_dim and `arguments`."""
    arguments: Free = {}
    """Further keyword arguments of the class."""


class Part(Section):
    """Consecutive dimensions of the code that have a prior, and an adversary, of their own."""

    dims: PositiveInt
    """Number of latent dimensions; those of all parts sum to `model.latent_dim`."""
    prior: Annotated[
        GaussianPrior
        | MixturePrior
        | SwissRollPrior
        | UniformPrior
        | LaplacePrior
        | StudentTPrior
        | SpherePrior
        | CategoricalPrior
        | CustomPrior,
        Field(discriminator="kind"),
    ] = GaussianPrior()
    """Prior of these dimensions. Under a categorical one the encoder has a softmax, elsewhere the
    run's posterior."""
    straight_through: bool = False
    """For a categorical part: codes are one-hot, with the gradients of the softmax."""
    given: Literal["label"] | None = None
    """label: the part is the sample's label, one-hot, instead of something that the encoder infers.
    The decoder reads it, and the other parts are matched with their prior for every label by
    itself. Samples without a label are left out. Of several given parts the label numbers the
    combinations, as numpy.ravel_multi_index does."""


class ProductPrior(Section):
    """Independent parts, each with a prior of its own: z = [class | style], for example."""

    kind: Literal["product"] = "product"
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    """The parts in the order of their dimensions, as `{dims: 10, prior: {kind: categorical}}`."""


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
    | CustomPrior
    | ProductPrior,
    Field(discriminator="kind"),
]
