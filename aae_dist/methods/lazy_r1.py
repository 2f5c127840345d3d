"""The R1 penalty on the discriminator, every few steps."""

import torch
from torch import Tensor

from aae_dist.methods.inputs import MicroBatch


class LazyR1:
    """weight / 2 * |gradient of the logit|^2 at prior samples: Mescheder et al., arXiv 1801.04406.

    Lazy as in Karras et al., arXiv 1912.04958, section 3.1: in one step of `every`, times `every`.
    """

    def __init__(self, weight: float, every: int) -> None:
        """Take the weight, 0 for no penalty at all, and the steps between penalties."""
        self.weight, self.every = weight, every

    def is_due(self, part: MicroBatch) -> bool:
        """Return whether the part's step is one with a penalty."""
        return self.weight > 0 and part.draws.step % self.every == 0

    def penalty(self, part: MicroBatch, both: Tensor, logits_prior_B: Tensor) -> Tensor:
        """Return the penalty of a step in which it is due, a scalar.

        Args:
            part: the rows.
            both: the discriminator's input, (2B, Z), prior samples first.
            logits_prior_B: its logits of the prior samples.
        """
        (gradient,) = torch.autograd.grad(logits_prior_B.sum(), both, create_graph=True)
        square_B = gradient[: len(logits_prior_B)].square().sum(1)
        return 0.5 * self.weight * self.every * (part.weights_B @ square_B)
