"""Section method: the phases of a training step and their losses."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section


class _Method(Section):
    reconstruction_loss: Literal["sum_half", "mean", "bce", "l1"] = "sum_half"
    """Loss per sample. sum_half: half the summed squared error (as in the paper). mean: mean
    squared error. bce: summed binary cross-entropy. l1: summed absolute error."""


class AdversarialMethod(_Method):
    """Adversarial autoencoder: reconstruction, discriminator update, generator update."""

    kind: Literal["adversarial"] = "adversarial"
    adversary: Literal["bce", "least_squares", "hinge"] = "bce"
    """Adversarial loss: cross-entropy (as in the paper), least squares (Mao et al. 2017) or
    hinge."""
    r1_weight: NonNegativeFloat = 0.0
    """Weight of the R1 penalty on the discriminator's gradient at prior samples; 0 for none."""
    r1_every: PositiveInt = 16
    """Steps between R1 penalties; each is multiplied by this number (lazy regularization)."""
    input_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to the discriminator's inputs."""
    weight: PositiveFloat = 1.0
    """Factor on the generator's loss, for SGD. With Adam it matters only where the gradient is
    small compared to `eps`; use `phases.generator.optimizer.lr` instead."""
    gradient_ratio: PositiveFloat | None = None
    """Replaces `weight`, for SGD: scale the generator's gradient to this fraction of the norm of
    the reconstruction gradient. Adam divides by the gradient's own size, so there the scale cancels
    out beyond `eps`."""


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
    """Reconstruction plus the sliced Wasserstein distance of codes and prior samples (SWAE)."""

    kind: Literal["sliced_wasserstein"] = "sliced_wasserstein"
    weight: PositiveFloat = 100.0
    """Weight of the squared distance relative to the reconstruction error."""
    num_projections: PositiveInt = 128
    """Number of random directions per step."""


Method = Annotated[
    AdversarialMethod | VariationalMethod | AutoencoderMethod | MmdMethod | SlicedWassersteinMethod,
    Field(discriminator="kind"),
]
