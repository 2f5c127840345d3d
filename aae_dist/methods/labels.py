"""Adversarial methods that read labels in training: Makhzani et al., arXiv 1511.05644.

Style and content apart (section 4) needs no method of its own: a part of the code is given.
Shapes: B rows on this rank, K classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aae_dist.distributed.optimizer import SynchronizedOptimizer
from aae_dist.distributed.world import rows_of_all_ranks
from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.methods.method import Distance, Encoded, Losses, MicroBatch, Modules
from aae_dist.models import ProductPosterior, run_encoder


class LabelGuidedMethod(AdversarialMethod):
    """The discriminator reads the label, and labels choose the prior's mode (section 2.3).

    The distance of `method.balance: auto` compares codes with the prior samples of their label: one
    that knew no labels would hold the codes where they are, in the modes of other classes.
    """

    def conditions(self, part: MicroBatch) -> tuple[Tensor, ...]:
        return (part.labels_B,)

    def distance_and_gradient(
        self, encoded: Sequence[Encoded], distance: Distance
    ) -> tuple[Tensor, Tensor]:
        labels = torch.cat([e.part.labels_B for e in encoded]).to(encoded[0].z_BZ.dtype)
        rows, world = torch.cat([e.part.rows_B for e in encoded]), self.modules.world
        num_rows = encoded[0].part.draws.global_batch_size
        labels_G = rows_of_all_ranks(labels[:, None], rows, num_rows, world)[:, 0]
        return super().distance_and_gradient(encoded, partial(self.distance, labels_G=labels_G))


class SemiSupervisedMethod(AdversarialMethod):
    """A last phase trains the class part of the code on labelled samples (section 5)."""

    phases = {**AdversarialMethod.phases, "classification": ("encoder",)}

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, SynchronizedOptimizer],
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
        loss = share * F.cross_entropy(logits_BK, part.labelled_B, reduction="sum")
        return self.classification_weight * loss, {"loss/classification": loss.detach()}
