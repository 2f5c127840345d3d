"""The adversarial autoencoder, with labels and without: Makhzani et al., arXiv 1511.05644.

Style and content apart (section 4) needs no method of its own: a part of the code is given.
Shapes: B rows on this rank, C H W image, Z latent_dim, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aae_dist.distributed import optimizer, world, wrappers
from aae_dist.losses import ADVERSARIES
from aae_dist.methods.distances import PartwiseDistance
from aae_dist.methods.method import Distance, Draws, Encoded, Losses, Method, MicroBatch, Modules
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


class LabelGuidedMethod(AdversarialMethod):
    """The discriminator reads the label, and labels choose the prior's mode (section 2.3).

    The distance of `method.balance: auto` compares codes with the prior samples of their label: one
    that knew no labels would hold the codes where they are, in the modes of other classes. In the
    game and in the distance the samples with a label weigh as much as those without, however few:
    those without are content with any mode.
    """

    labels_G: Tensor
    """Of the global batch, as floats."""
    factors: tuple[Tensor, Tensor]
    """On the weights of rows with and without a label, scalars."""

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Weigh rows with a label and rows without by their numbers; then as without labels."""
        labels = torch.cat([part.labels_B for part in parts])
        weights = torch.cat([part.weights_B for part in parts])
        rows, num_rows = torch.cat([p.rows_B for p in parts]), parts[0].draws.global_batch_size
        table = torch.stack([labels.to(weights), weights], 1)
        table = world.rows_of_all_ranks(table, rows, num_rows, self.modules.world)
        self.labels_G, weights_G = table.unbind(1)
        is_known_G = self.labels_G >= 0
        # Counts are exact, whatever the order of the sum.
        num_known, num_others = (
            ((weights_G > 0) & own).sum().to(weights) for own in (is_known_G, ~is_known_G)
        )
        has_both, half = num_known * num_others > 0, (num_known + num_others) / 2
        self.factors = (
            torch.where(has_both, half / num_known, 1.0),
            torch.where(has_both, half / num_others, 1.0),
        )
        return super().step(parts)

    def game_weights(self, part: MicroBatch) -> Tensor:
        return part.weights_B * self._factor(part.labels_B)

    def _factor(self, labels_B: Tensor) -> Tensor:
        with_label, without = self.factors
        return torch.where(labels_B >= 0, with_label, without)

    def conditions(self, part: MicroBatch) -> tuple[Tensor, ...]:
        return (part.labels_B,)

    def distance_and_gradient(
        self, encoded: Sequence[Encoded], distance: Distance
    ) -> tuple[Tensor, Tensor]:
        def of_label(z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
            weights_G = weights_G * self._factor(self.labels_G)
            return self.distance(z_GZ, prior_GZ, weights_G, draws, self.labels_G)

        return super().distance_and_gradient(encoded, of_label)


class SemiSupervisedMethod(AdversarialMethod):
    """A last phase trains the class part of the code on labelled samples (section 5)."""

    phases = {**AdversarialMethod.phases, "classification": ("encoder",)}

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, optimizer.SynchronizedOptimizer],
        classification_weight: float = 1.0,
        **adversarial: Any,
    ) -> None:
        super().__init__(modules, optimizers, **adversarial)
        assert isinstance(modules.posterior, ProductPosterior)
        self.posterior, self.classification_weight = modules.posterior, classification_weight

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Reconstruct; regularize by both updates; classify labelled samples."""
        losses = super().step(parts)
        classified = self.optimizers["classification"].update_terms(self.classification_loss, parts)
        return {**losses, **classified}

    def classification_loss(self, part: MicroBatch) -> tuple[Tensor, Losses]:
        """Return the weighted cross-entropy of labelled samples; logged without weight."""
        assert part.labelled_x_BCHW is not None
        assert part.labelled_B is not None
        x_BCHW = self.with_image_noise(part, part.labelled_x_BCHW, "labelled images")
        noise_BN = part.noise_regularization_BN
        outputs_BP = run_encoder(self.modules.encoder, self.posterior, x_BCHW, noise_BN)
        logits_BK = self.posterior.logits(outputs_BP)
        # Every row is labelled: the mean over the global batch, as a share of this rank.
        share = self.modules.world.size / part.draws.global_batch_size
        loss = share * torch.nn.functional.cross_entropy(
            logits_BK, part.labelled_B, reduction="sum"
        )
        return self.classification_weight * loss, {"loss/classification": loss.detach()}
