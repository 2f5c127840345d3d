"""How each phase's parameters are updated: optimizer, learning-rate schedule, clipping."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from aae_dist.config.sections import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Adam(Section):
    """Adam (Kingma and Ba, 2015), fused."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    """Learning rate before the schedule."""
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
    """Added to the denominator; the generator wants 1e-3 (configs/optimizer/adamw.yaml)."""
    weight_decay: NonNegativeFloat = 1e-2
    """Part of every weight, times the learning rate, that is taken off in each update. With adamw
    in reconstruction and in generator the encoder's weights are decayed twice a step."""


class Sgd(Section):
    """Stochastic gradient descent with momentum, fused (the paper's optimizer)."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 1e-2
    """Learning rate before the schedule."""
    momentum: Momentum = 0.9
    """Decay of the running sum of gradients."""


class ConstantSchedule(Section):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"
    warmup: Fraction = 0.0
    """Part of the planned samples over which the rate rises linearly from zero."""


class LinearSchedule(Section):
    """The learning rate stays, then falls linearly."""

    kind: Literal["linear"] = "linear"
    warmup: Fraction = 0.0
    """Part of the planned samples over which the rate rises linearly from zero."""
    decay_from: Fraction = 0.5
    """Part of the planned samples after which the rate falls."""
    final: Fraction = 0.0
    """Factor reached at the end of the plan."""


class CosineSchedule(Section):
    """The learning rate falls along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.0
    """Part of the planned samples over which the rate rises linearly from zero."""
    final: Fraction = 0.0
    """Factor reached at the end of the plan."""


class StepSchedule(Section):
    """The learning rate is multiplied by `factor` at each milestone (the paper's recipe)."""

    kind: Literal["step"] = "step"
    warmup: Fraction = 0.0
    """Part of the planned samples over which the rate rises linearly from zero."""
    milestones: tuple[Fraction, ...] = (0.5,)
    """Parts of the planned samples at which the rate drops."""
    factor: Fraction = 0.1
    """Factor of each drop."""


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="kind")]
Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule,
    Field(discriminator="kind"),
]


class Phase(Section):
    """One phase's update rule."""

    optimizer: Optimizer = Adam()
    schedule: Schedule = LinearSchedule()
    """Factor on the learning rate, a function of samples seen over samples planned."""
    clip_norm: NonNegativeFloat | None = None
    """Largest L2 norm of the phase's averaged gradient; none by default."""


class Phases(Section):
    """Update rules of the three phases; a method uses those it has.

    The default rates are the best balance of reconstruction and match of those tried on MNIST with
    8 dimensions, for 2,000 and for 12,000 steps (docs/benchmarks.md).
    """

    reconstruction: Phase = Phase(optimizer=Adam(lr=2e-3))
    """Trains encoder and decoder."""
    discriminator: Phase = Phase(optimizer=Adam(lr=1e-3, betas=(0.5, 0.999)))
    """Trains the discriminator."""
    generator: Phase = Phase(optimizer=Adam(lr=1e-3, betas=(0.5, 0.999), eps=1e-3))
    """Trains the encoder against the frozen discriminator.

    Adam makes steps of one size of any gradient. Where codes match the prior, this one is small
    (1e-4 a weight) and mostly noise: full steps of it roughen the encoder until the discriminator
    wins. With eps = 1e-3 such steps are those of SGD with lr / eps = 1 (the paper's 0.1 with
    momentum 0.9), and a step is never longer than Adam's.
    """
