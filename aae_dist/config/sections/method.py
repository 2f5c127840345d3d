"""Sections method and phases: the phases of a training step, their losses and optimizers."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from aae_dist.config.sections import PositiveInt, Section


class _Method(Section):
    reconstruction_loss: Literal[
        "sum_half", "mean", "bce", "l1", "poisson", "negative_binomial", "zinb", "mixed"
    ] = "sum_half"
    """Loss per sample. sum_half: half the summed squared error (as in the paper). mean: mean
    squared error. bce: summed binary cross-entropy. l1: summed absolute error. poisson,
    negative_binomial, zinb (zero-inflated): negative log-likelihood of counts given their total in
    nats, with one dispersion per feature; model.decoder_output is linear then (docs/counts.md).
    mixed: by the kind of each column, see data.columns."""
    image_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to the encoder's inputs in training, in the data's
    units (images are in [0, 1]); reconstructions are compared with clean images (denoising)."""


class AnyAdversarial(_Method):
    """The keys of every method that has an adversary."""

    adversary: Literal["bce", "least_squares", "hinge"] = "bce"
    """Adversarial loss: cross-entropy (as in the paper), least squares (Mao et al. 2017) or
    hinge."""
    balance: Literal["auto", "none"] = "auto"
    """How reconstruction and match share the encoder. auto: a distance between codes and prior
    samples holds the bulk of the codes in the reconstruction update, the generator's steps are
    measured by the second moments of reconstruction's Adam, and the weights below have no unit, so
    that the same ones suit any data. none: as in the paper, each phase by itself."""
    weight: PositiveFloat | None = None
    """Factor on the generator's loss; by default 0.04 with balance=auto, times the root of
    8 / `model.latent_dim` above 8 dimensions, where 1 stands for the reconstruction loss of the
    data's mean, else 1. Without balance and with Adam it matters only where the gradient is small
    compared to `eps`."""
    distance_weight: NonNegativeFloat | None = None
    """Factor on the sliced Wasserstein distance of codes and prior samples; by default 0.2 with
    balance=auto, where 1 stands for the reconstruction loss of the data's mean per variance of the
    prior, else 0 for none."""
    num_projections: PositiveInt = 128
    """Number of random directions of the distance per step."""
    r1_weight: NonNegativeFloat | None = None
    """Weight of the R1 penalty on the discriminator's gradient at prior samples, 0 for none; by
    default 0.01 with balance=auto, where it is multiplied by `model.latent_dim` and the prior's
    variance, else 0."""
    r1_every: PositiveInt = 16
    """Steps between R1 penalties; each is multiplied by this number (lazy regularization)."""
    input_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to the discriminator's inputs."""
    gradient_ratio: PositiveFloat | None = None
    """Replaces `weight`, for SGD and balance=none: scale the generator's gradient to this fraction
    of the norm of the reconstruction gradient. Adam divides by the gradient's own size, so there
    the scale cancels out beyond `eps`."""

    smoothness: NonNegativeFloat = 0.0
    """Factor on the change of the class probabilities, KL(q(y|x) || q(y|x + r)) in nats, where x
    moves by `smoothness_radius` in the worst direction (virtual adversarial training: Miyato et al.
    2018); 0 for none. It needs a categorical part of the code, and is added to the generator's
    loss; with balance=auto, 1 stands for the reconstruction loss of the data's mean."""
    smoothness_radius: PositiveFloat = 2.0
    """Euclidean length of r, in the data's units (images are in [0, 1])."""

    def weights(self, latent_dim: int) -> tuple[float, float, float]:
        """Return the weights of the generator's loss, of the distance and of R1."""
        by_default = (1.0, 0.0, 0.0)
        if self.balance == "auto":
            by_default = (0.04 * min(1.0, (8 / latent_dim) ** 0.5), 0.2, 0.01)
        given = (self.weight, self.distance_weight, self.r1_weight)
        adversary, distance, r1 = (
            default if value is None else value
            for value, default in zip(given, by_default, strict=True)
        )
        return adversary, distance, r1


class AdversarialMethod(AnyAdversarial):
    """Adversarial autoencoder: reconstruction, discriminator update, generator update."""

    kind: Literal["adversarial"] = "adversarial"


class LabelGuidedMethod(AnyAdversarial):
    """Adversarial, with a prior whose modes are chosen by labels (paper, section 2.3).

    The discriminator also reads the label, one-hot, with one class more for samples without one:
    these are compared with the whole prior, all others with the class of their label.
    """

    kind: Literal["label_guided"] = "label_guided"


class SemiSupervisedMethod(AnyAdversarial):
    """Adversarial, and a classification phase that trains the class part of the code on labels.

    Paper, section 5. The first categorical part of `prior.parts` holds the class; the labelled
    samples are those of `data.labelled`.
    """

    kind: Literal["semi_supervised"] = "semi_supervised"
    classification_weight: PositiveFloat | None = None
    """Factor on the cross-entropy of the classification phase; by default 0.2 with balance=auto,
    where 1 stands for the reconstruction loss of the data's mean, else 1."""


class VariationalMethod(_Method):
    """Variational autoencoder: reconstruction plus beta times KL(q(z|x) || p(z)), in one phase."""

    kind: Literal["variational"] = "variational"
    beta: NonNegativeFloat = 1.0
    """Weight of the KL term."""


class AutoencoderMethod(_Method):
    """Plain autoencoder: only the reconstruction phase; the prior is used by the metrics alone."""

    kind: Literal["autoencoder"] = "autoencoder"


class MmdMethod(_Method):
    """Reconstruction plus the maximum mean discrepancy of codes and prior samples (WAE-MMD)."""

    kind: Literal["mmd"] = "mmd"
    weight: PositiveFloat = 100.0
    """Weight of the discrepancy relative to the reconstruction error."""


class SlicedWassersteinMethod(_Method):
    """Reconstruction plus the sliced Wasserstein distance of codes and prior samples (SWAE).

    Where a part of the code is given, it is the sliced energy distance per label (docs/parts.md).
    """

    kind: Literal["sliced_wasserstein"] = "sliced_wasserstein"
    weight: PositiveFloat = 100.0
    """Weight of the squared distance relative to the reconstruction error."""
    num_projections: PositiveInt = 128
    """Number of random directions per step."""


class CharacteristicMethod(_Method):
    """Reconstruction plus a distance of characteristic functions of codes and prior (SIGReg)."""

    kind: Literal["characteristic"] = "characteristic"
    weight: PositiveFloat = 400.0
    """Weight of the squared distance relative to the reconstruction error."""
    num_projections: PositiveInt = 128
    """Number of random directions per step."""


Method = Annotated[
    AdversarialMethod
    | LabelGuidedMethod
    | SemiSupervisedMethod
    | VariationalMethod
    | AutoencoderMethod
    | MmdMethod
    | SlicedWassersteinMethod
    | CharacteristicMethod,
    Field(discriminator="kind"),
]


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Adam(Section):
    """Adam (Kingma and Ba, 2015), fused."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat | None = None
    """Learning rate before the schedule; by default 2e-3 (1000 / n)^0.3 for fully connected
    encoders and decoders whose widest layer has n units, as narrow networks take higher rates, and
    2e-3 for all others."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), fused."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Learning rate before the schedule."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator; use 1e-3 for the generator (configs/optimizer/adamw.yaml)."""
    weight_decay: NonNegativeFloat = 1e-2
    """Fraction of every weight, times the learning rate, that is subtracted in each update. With
    adamw in both reconstruction and generator, the encoder's weights decay twice per step."""


class Sgd(Section):
    """Stochastic gradient descent with momentum, fused (the paper's optimizer)."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 1e-2
    """Learning rate before the schedule."""
    momentum: Momentum = 0.9
    """Decay of the running sum of gradients."""


class ConstantSchedule(Section):
    """Constant learning rate."""

    kind: Literal["constant"] = "constant"
    warmup: Fraction = 0.0
    """Fraction of the planned samples over which the rate rises linearly from zero."""


class LinearSchedule(Section):
    """Constant learning rate, then linear decay."""

    kind: Literal["linear"] = "linear"
    warmup: Fraction = 0.0
    """Fraction of the planned samples over which the rate rises linearly from zero."""
    decay_from: Fraction = 0.5
    """Fraction of the planned samples after which the rate decays."""
    final: Fraction = 0.0
    """Factor on the learning rate at the end of training."""


class CosineSchedule(Section):
    """Decay along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.0
    """Fraction of the planned samples over which the rate rises linearly from zero."""
    final: Fraction = 0.0
    """Factor on the learning rate at the end of training."""


class StepSchedule(Section):
    """The learning rate is multiplied by `factor` at each milestone (as in the paper)."""

    kind: Literal["step"] = "step"
    warmup: Fraction = 0.0
    """Fraction of the planned samples over which the rate rises linearly from zero."""
    milestones: tuple[Fraction, ...] = (0.5,)
    """Fractions of the planned samples at which the rate drops."""
    factor: Fraction = 0.1
    """Factor on the learning rate at each milestone."""


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="kind")]
Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule, Field(discriminator="kind")
]


class Phase(Section):
    """Update rule of one phase."""

    optimizer: Optimizer = Adam()
    schedule: Schedule = LinearSchedule()
    """Factor on the learning rate as a function of samples seen over samples planned."""
    clip_norm: NonNegativeFloat | None = None
    """Maximum L2 norm of the phase's averaged gradient; by default no clipping."""


class Phases(Section):
    """Update rules of the phases; a method ignores phases that it does not have."""

    reconstruction: Phase = Phase()
    """Trains encoder and decoder."""
    discriminator: Phase = Phase(optimizer=Adam(lr=2e-3, betas=(0.5, 0.999)))
    """Trains the discriminator."""
    generator: Phase = Phase()
    """Trains the encoder against the frozen discriminator. With `method.balance: auto` its steps
    are divided by the root of reconstruction's second moments, or of its own where those are
    larger. With `none` use lr 1e-3, betas [0.5, 0.999] and eps 1e-3: where the codes match the
    prior, this gradient is small (1e-4 per weight) and mostly noise, and full steps of Adam roughen
    the encoder until the discriminator wins."""
    classification: Phase = Phase()
    """Trains the encoder on labelled samples; with `method.balance: auto` in steps measured as the
    generator's."""
