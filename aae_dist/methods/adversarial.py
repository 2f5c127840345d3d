"""The adversarial autoencoder: Makhzani et al., arXiv 1511.05644, section 2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.distributed.data_parallel import bare
from aae_dist.losses import discriminator_loss, generator_loss
from aae_dist.methods.inputs import Part
from aae_dist.methods.method import Losses, Method


@dataclass(frozen=True)
class Coded:
    """A part of the batch with its codes; `z_BZ` carries the encoder's graph if it was kept."""

    part: Part
    z_BZ: Tensor


class AdversarialMethod(Method):
    """Two phases a batch: reconstruction, then regularization by two updates in a row."""

    phases = {
        "reconstruction": ("encoder", "decoder"),
        "discriminator": ("discriminator",),
        "generator": ("encoder",),
    }

    def step(self, parts: Sequence[Part]) -> Losses:
        """Reconstruct; teach the discriminator to tell codes from prior samples; fool it."""
        reconstruction = self.optimizers["reconstruction"].update(self.reconstruction_loss, parts)
        coded = self.encode_once(parts)
        discriminator = self.optimizers["discriminator"].update(self.discriminator_loss, coded)
        generator = self.optimizers["generator"].update(self.generator_loss, coded)
        return {
            "loss/reconstruction": reconstruction,
            "loss/discriminator": discriminator,
            "loss/generator": generator,
        }

    def encode_once(self, parts: Sequence[Part]) -> list[Coded]:
        """Encode for both updates: the encoder does not change between them.

        With micro-batches the graphs of all parts would not fit in memory, which is why there are
        micro-batches; the generator update then encodes each part again.
        """
        with torch.set_grad_enabled(len(parts) == 1):
            return [Coded(p, self.encode(p, p.noise_regularization_BZ)) for p in parts]

    def discriminator_loss(self, coded: Coded) -> Tensor:
        """Prior samples are the positives, codes the negatives; one pass over both."""
        assert self.modules.discriminator is not None
        both = torch.cat([coded.part.z_prior_BZ, coded.z_BZ.detach()])
        logits_prior_B, logits_codes_B = self.modules.discriminator(both).chunk(2)
        return coded.part.weights_B @ discriminator_loss(logits_prior_B, logits_codes_B)

    def generator_loss(self, coded: Coded) -> Tensor:
        """The frozen discriminator should call the codes prior samples."""
        assert self.modules.discriminator is not None
        z_BZ = coded.z_BZ
        if not z_BZ.requires_grad:
            z_BZ = self.encode(coded.part, coded.part.noise_regularization_BZ)
        frozen = bare(self.modules.discriminator)
        return coded.part.weights_B @ generator_loss(frozen(z_BZ))
