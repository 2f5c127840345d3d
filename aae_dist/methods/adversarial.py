"""The adversarial autoencoder: Makhzani et al., arXiv 1511.05644, section 2.

Shapes: B rows on this rank, C H W image, Z latent_dim, K classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aae_dist.distributed import optimizer, wrappers
from aae_dist.losses import ADVERSARIES
from aae_dist.methods.distances import PartwiseDistance
from aae_dist.methods.method import Encoded, Losses, Method, MicroBatch, Modules
from aae_dist.models import ProductPosterior, run_encoder
from aae_dist.priors import Part


class AdversarialMethod(Method):
    """Two phases per batch: reconstruction, then regularization in two updates."""

    phases = {
        "reconstruction": ("encoder", "decoder"),
        "discriminator": ("discriminator",),
        "generator": ("encoder",),
    }

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, optimizer.SynchronizedOptimizer],
        adversary: str = "bce",
        weight: float = 1.0,
        distance_weight: float = 0.0,
        num_projections: int = 128,
        r1_weight: float = 0.0,
        r1_every: int = 16,
        r1_variances: Sequence[float] = (),
        input_noise: float = 0.0,
        gradient_ratio: float | None = None,
        smoothness: float = 0.0,
        smoothness_radius: float = 2.0,
    ) -> None:
        super().__init__(modules, optimizers)
        assert modules.discriminator is not None
        self.discriminator = modules.discriminator
        self.frozen = wrappers.frozen_view(modules.discriminator)
        self.adversary = ADVERSARIES[adversary]
        variances = r1_variances or [1.0] * len(modules.prior.parts)
        self.r1 = LazyR1(r1_weight, r1_every, modules.prior.parts, variances)
        self.distance_weight = distance_weight
        self.distance = PartwiseDistance(modules.prior, num_projections)
        self.input_noise, self.weight, self.gradient_ratio = input_noise, weight, gradient_ratio
        self.smoothness_weight = smoothness
        self.smoothness = Smoothness(modules, smoothness_radius) if smoothness else None
        if gradient_ratio is not None:
            self.optimizers["reconstruction"].norm_of = "encoder"

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Reconstruct; train the discriminator to tell codes from prior samples; fool it."""
        reconstruction = self.reconstruct(parts)
        encoded = self.encode_once(parts, lambda part: part.noise_regularization_BN)
        discriminator = self.optimizers["discriminator"].update_terms(
            self.discriminator_loss, encoded
        )
        generator = self.optimizers["generator"].update_terms(
            self.generator_loss, encoded, norm=self.generator_norm()
        )
        return {**reconstruction, **discriminator, **generator}

    def reconstruct(self, parts: Sequence[MicroBatch]) -> Losses:
        """Reconstruct; with a distance, also hold the bulk of the codes near the prior.

        Without it, codes wander as one cloud, behind which the discriminator lags: MNIST at 32
        dimensions ends with C2ST 0.99 instead of 0.67 (docs/algorithm.md).
        """
        if not self.distance_weight:
            return super().reconstruct(parts)
        return self.reconstruct_and_match(parts, self.distance, self.distance_weight)

    def discriminator_loss(self, encoded: Encoded) -> tuple[Tensor, Losses]:
        """Prior samples are the positives, codes the negatives; one pass over both."""
        part = encoded.part
        z_prior_BZ = self.with_input_noise(part, part.z_prior_BZ, "prior samples")
        z_codes_BZ = self.with_input_noise(part, encoded.z_BZ.detach(), "codes")
        penalised = self.r1.is_due(part)
        both = torch.cat([z_prior_BZ, z_codes_BZ]).requires_grad_(penalised)
        conditions = [torch.cat([each, each]) for each in self.conditions(part)]
        logits_prior, logits_codes = self.discriminator(both, *conditions).chunk(2)
        # One loss, or one per part of the code.
        losses = self.game_weights(part) @ self.adversary.discriminator_loss(
            logits_prior, logits_codes
        )
        loss = losses.sum()
        if penalised:
            loss = loss + self.r1.penalty(part, both, logits_prior)
        terms = {"loss/discriminator": loss.detach()}
        if losses.ndim and len(losses) > 1:
            each = enumerate(losses.detach(), start=1)
            terms |= {f"part_{number}/loss/discriminator": value for number, value in each}
        return loss, terms

    def generator_loss(self, encoded: Encoded) -> tuple[Tensor, Losses]:
        """The frozen discriminator should call the codes prior samples; logged without weight."""
        part = encoded.part
        z_BZ = self.with_input_noise(part, self.with_graph(encoded), "codes")
        logits = self.frozen(z_BZ, *self.conditions(part))
        loss = (self.game_weights(part) @ self.adversary.generator_loss(logits)).sum()
        terms = {"loss/generator": loss.detach()}
        if self.smoothness is None:
            return self.weight * loss, terms
        change = self.smoothness.divergence(part)
        terms["loss/smoothness"] = change.detach()
        return self.weight * loss + self.smoothness_weight * change, terms

    def game_weights(self, part: MicroBatch) -> Tensor:
        """Return the weights (B) of the rows in the losses of discriminator and generator."""
        return part.weights_B

    def conditions(self, part: MicroBatch) -> tuple[Tensor, ...]:
        """Return the discriminator's further inputs per row, the same for code and prior sample."""
        return ()

    def generator_norm(self) -> Tensor | None:
        """Return the norm to scale the generator's gradient to; None leaves it as it is."""
        # It is `gradient_ratio` times the norm of reconstruction's gradient on the encoder, so that
        # under SGD neither dominates (Esser et al., arXiv 2012.09841, equation 7, with whole
        # gradients). Adam, an optimizer of its own per phase, cancels such factors above its eps.
        if self.gradient_ratio is None:
            return None
        norm = self.optimizers["reconstruction"].network_norm
        return self.gradient_ratio * norm

    def with_input_noise(self, part: MicroBatch, z_BZ: Tensor, what: str) -> Tensor:
        """Add the noise that blurs a sharp prior, whose samples are too easy to tell from codes."""
        if not self.input_noise:
            return z_BZ
        noise_BZ = part.draws.normal(f"noise on {what}", part.rows, z_BZ.shape[1])
        for given in self.modules.prior.given:  # labels stay as they are
            noise_BZ[:, given.columns] = 0
        return z_BZ + self.input_noise * noise_BZ


class LazyR1:
    """weight / 2 * |gradient of the logit|^2 at prior samples: Mescheder et al., arXiv 1801.04406.

    Lazy as in Karras et al., arXiv 1912.04958, section 3.1: in one step of `every`, times `every`.
    """

    def __init__(
        self, weight: float, every: int, parts: Sequence[Part], factors: Sequence[float]
    ) -> None:
        """`factors` are on the weight, one per part of the code."""
        self.weight, self.every = weight, every
        self._parts = [(part.columns, factor) for part, factor in zip(parts, factors, strict=True)]

    def is_due(self, part: MicroBatch) -> bool:
        return self.weight > 0 and part.draws.step % self.every == 0

    def penalty(self, part: MicroBatch, both: Tensor, logits_prior: Tensor) -> Tensor:
        """Return the penalty, a scalar; `both` are the inputs, (2B, Z), prior samples first."""
        (gradient,) = torch.autograd.grad(logits_prior.sum(), both, create_graph=True)
        squares_BZ = gradient[: len(logits_prior)].square()
        # The discriminator of each part reads its own columns, so this is a penalty for each.
        square_B = torch.stack([f * squares_BZ[:, own].sum(1) for own, f in self._parts]).sum(0)
        return 0.5 * self.weight * self.every * (part.weights_B @ square_B)


class Smoothness:
    """How much the class probabilities q(y|x) change where x moves by `radius` at worst.

    Virtual adversarial training, Miyato et al., arXiv 1704.03976, equations 5 to 11, with one power
    iteration. Hu et al., arXiv 1702.08720 (IMSAT), use it for clusters.
    """

    def __init__(self, modules: Modules, radius: float) -> None:
        """`radius` is a Euclidean length in the data's units."""
        assert isinstance(modules.posterior, ProductPosterior)
        self.posterior, self.radius = modules.posterior, radius
        self.encoder, self.frozen = modules.encoder, wrappers.frozen_view(modules.encoder)

    def divergence(self, part: MicroBatch) -> Tensor:
        """Return KL(q(y|x) || q(y|x + r)) in nats, a weighted mean, at the worst direction of r.

        q(y|x) and r are constants, so that gradients move the neighbours towards the sample.
        """
        # The frozen encoder takes part in no exchange of gradients.
        with torch.no_grad():
            target_BK = self._log_probabilities(self.frozen, part, part.x_BCHW).exp()
        r_BCHW = self._worst_direction(part, target_BK)
        moved_BK = self._log_probabilities(self.encoder, part, part.x_BCHW + r_BCHW)
        return part.weights_B @ _kl(target_BK, moved_BK)

    def _worst_direction(self, part: MicroBatch, target_BK: Tensor) -> Tensor:
        """Return r, (B, C, H, W): along the gradient of the divergence at a random direction."""
        x_BCHW = part.x_BCHW
        numbers = part.draws.normal("directions of images", part.rows, x_BCHW[0].numel())
        r_BCHW = self._of_radius(numbers.view_as(x_BCHW)).requires_grad_()
        with torch.enable_grad():
            moved_BK = self._log_probabilities(self.frozen, part, x_BCHW + r_BCHW)
            (gradient_BCHW,) = torch.autograd.grad(_kl(target_BK, moved_BK).sum(), r_BCHW)
        return self._of_radius(gradient_BCHW)

    def _of_radius(self, r_BCHW: Tensor) -> Tensor:
        return self.radius * torch.nn.functional.normalize(r_BCHW.flatten(1), eps=1e-30).view_as(
            r_BCHW
        )

    def _log_probabilities(
        self, encoder: torch.nn.Module, part: MicroBatch, x_BCHW: Tensor
    ) -> Tensor:
        noise_BN = part.noise_regularization_BN
        outputs_BP = run_encoder(encoder, self.posterior, x_BCHW, noise_BN)
        return self.posterior.logits(outputs_BP).log_softmax(1)


def _kl(target_BK: Tensor, log_other_BK: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(log_other_BK, target_BK, reduction="none").sum(1)
