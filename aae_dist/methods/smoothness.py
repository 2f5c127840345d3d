"""Classes that stay the same near each sample: virtual adversarial training.

Miyato et al., arXiv 1704.03976, equations 5 to 11, with one power iteration. Hu et al.,
arXiv 1702.08720 (IMSAT), use it for clusters. Shapes: B rows on this rank, C H W image, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aae_dist.distributed.wrappers import frozen_view
from aae_dist.methods.method import MicroBatch, Modules
from aae_dist.models import ProductPosterior, run_encoder


class Smoothness:
    """How much the class probabilities q(y|x) change where x moves by `radius` at worst."""

    def __init__(self, modules: Modules, radius: float) -> None:
        """`radius` is a Euclidean length in the data's units."""
        assert isinstance(modules.posterior, ProductPosterior)
        self.posterior, self.radius = modules.posterior, radius
        self.encoder, self.frozen = modules.encoder, frozen_view(modules.encoder)

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
        return self.radius * F.normalize(r_BCHW.flatten(1), eps=1e-30).view_as(r_BCHW)

    def _log_probabilities(
        self, encoder: torch.nn.Module, part: MicroBatch, x_BCHW: Tensor
    ) -> Tensor:
        noise_BN = part.noise_regularization_BN
        outputs_BP = run_encoder(encoder, self.posterior, x_BCHW, noise_BN)
        return self.posterior.logits(outputs_BP).log_softmax(1)


def _kl(target_BK: Tensor, log_other_BK: Tensor) -> Tensor:
    return F.kl_div(log_other_BK, target_BK, reduction="none").sum(1)
