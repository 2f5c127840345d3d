"""What a step reads: this rank's rows of the global batch and of the step's random draws.

Shapes: B rows on this rank, C H W image, Z latent_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from aae_dist.distributed.seeds import generator
from aae_dist.distributed.world import World
from aae_dist.models import Posterior
from aae_dist.priors import Prior


@dataclass(frozen=True)
class Part:
    """Rows of one forward pass, on the device."""

    x_BCHW: Tensor
    """Images in [0, 1]."""
    weights_B: Tensor
    """ranks / unmasked samples of the global batch; 0 for a masked row and for its prior sample.

    Summed with these weights and averaged over ranks, losses are means over the global batch, also
    when ranks hold different numbers of rows.
    """
    z_prior_BZ: Tensor
    noise_reconstruction_BZ: Tensor
    noise_regularization_BZ: Tensor

    def split(self, size: int) -> list["Part"]:
        """Return consecutive parts of at most `size` rows."""
        columns = [getattr(self, field.name).split(size) for field in fields(self)]
        return [Part(*rows) for rows in zip(*columns, strict=True)]


@dataclass(frozen=True)
class StepInputs:
    """Makes the parts of a step; randomness is keyed by (seed, purpose, step) only.

    Every rank draws for the whole global batch and keeps its own rows, so a run does not depend on
    the number of ranks.
    """

    seed: int
    prior: Prior
    posterior: Posterior
    rows: slice
    global_batch_size: int
    micro_batch_size: int | None
    world: World
    dtype: torch.dtype

    def parts(self, images: Tensor, valid: Tensor, num_valid: int, step: int) -> list[Part]:
        """Return this rank's micro-batches.

        Args:
            images: (B, C, H, W), this rank's rows: uint8, or float32 that is taken as it is.
            valid: bool, (B); masked rows get weight 0.
            num_valid: unmasked samples of the global batch, alike on all ranks.
            step: number of the step, from 0.
        """
        device = self.world.device
        weight = self.world.size / max(num_valid, 1)  # with no good sample all weights are 0
        weights_B = valid.to(device, self.dtype, non_blocking=True) * weight
        x_BCHW = images.to(device, non_blocking=True).to(self.dtype)
        part = Part(
            x_BCHW=x_BCHW.div_(255) if images.dtype == torch.uint8 else x_BCHW,
            weights_B=weights_B,
            z_prior_BZ=self._rows(self.prior.sample, "prior", step),
            noise_reconstruction_BZ=self._rows(self._noise, "noise of reconstruction", step),
            noise_regularization_BZ=self._rows(self._noise, "noise of regularization", step),
        )
        return part.split(self.micro_batch_size or len(images))

    def _rows(
        self, draw: Callable[[int, torch.Generator], Tensor], purpose: str, step: int
    ) -> Tensor:
        samples = draw(self.global_batch_size, generator(self.seed, purpose, step))
        return samples[self.rows].to(self.world.device, self.dtype, non_blocking=True)

    def _noise(self, num_samples: int, generator: torch.Generator) -> Tensor:
        noise_dim = self.posterior.noise_dim(self.prior.latent_dim)
        return torch.randn(num_samples, noise_dim, generator=generator)
