"""Methods: which phases train the networks, and on which losses."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section


class _Method(Section):
    reconstruction_loss: Literal["sum_half", "mean", "bce", "l1"] = "sum_half"
    """Per sample: half the summed squared error (the paper's), its mean, summed BCE, summed |x|."""


class AdversarialMethod(_Method):
    """Adversarial autoencoder: reconstruction, discriminator update, generator update."""

    kind: Literal["adversarial"] = "adversarial"
    adversary: Literal["bce", "least_squares", "hinge"] = "bce"
    """The game: cross-entropy (the paper's), least squares (Mao et al. 2017) or hinge."""
    r1_weight: NonNegativeFloat = 0.0
    """Weight of the R1 penalty on the discriminator's gradient at prior samples; 0 for none."""
    r1_every: PositiveInt = 16
    """Steps between R1 penalties, each weighted by this many ("lazy")."""
    input_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on what the discriminator sees."""
    weight: PositiveFloat = 1.0
    """Factor on the generator's loss, for SGD. With Adam it counts only where the gradient is small
    beside `eps`: there `phases.generator.optimizer.lr` says how hard the codes are pulled."""
    gradient_ratio: PositiveFloat | None = None
    """Instead of `weight`, for SGD too: scale the generator's gradient to this part of the norm of
    reconstruction's. Adam divides by the gradient's own size: there it makes all steps whole."""


class VariationalMethod(_Method):
    """Variational autoencoder: reconstruction plus beta times KL(q(z|x) || p(z)), in one phase."""

    kind: Literal["variational"] = "variational"
    beta: NonNegativeFloat = 1.0
    """Weight of the KL term."""


class AutoencoderMethod(_Method):
    """Plain autoencoder: the reconstruction phase alone; the prior only serves the metrics."""

    kind: Literal["autoencoder"] = "autoencoder"


class MmdMethod(_Method):
    """Reconstruction plus the maximum mean discrepancy of codes and prior samples (WAE-MMD)."""

    kind: Literal["mmd"] = "mmd"
    weight: PositiveFloat = 100.0
    """Weight of the discrepancy beside the reconstruction error."""


class SlicedWassersteinMethod(_Method):
    """Reconstruction plus the sliced Wasserstein distance of codes and prior samples (SWAE)."""

    kind: Literal["sliced_wasserstein"] = "sliced_wasserstein"
    weight: PositiveFloat = 100.0
    """Weight of the squared distance beside the reconstruction error."""
    num_projections: PositiveInt = 128
    """Random directions a step."""


Method = Annotated[
    AdversarialMethod | VariationalMethod | AutoencoderMethod | MmdMethod | SlicedWassersteinMethod,
    Field(discriminator="kind"),
]
