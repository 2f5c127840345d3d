"""Adversarial methods that read labels in training: Makhzani et al., arXiv 1511.05644.

Style and content apart (section 4) needs no method of its own: a part of the code is given.
Shapes: B rows on this rank, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aae_dist.distributed import optimizer, world
from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.methods.method import Distance, Draws, Encoded, Losses, MicroBatch, Modules
from aae_dist.models import ProductPosterior, run_encoder


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
