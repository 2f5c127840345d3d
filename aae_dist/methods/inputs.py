"""What a step reads: this rank's rows of the global batch and of the step's random draws.

Shapes: B rows on this rank, G rows of the global batch, C H W image, N noise numbers, Z latent_dim.
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
class Draws:
    """The random draws of one step, keyed by (seed, purpose, step): the same on every rank."""

    seed: int
    step: int
    global_batch_size: int
    device: torch.device
    dtype: torch.dtype

    def generator(self, purpose: str) -> torch.Generator:
        """Return the generator, on the CPU, of one purpose."""
        return generator(self.seed, purpose, self.step)

    def of_global_batch(
        self, purpose: str, draw: Callable[[int, torch.Generator], Tensor]
    ) -> Tensor:
        """Return `draw(G, generator)`, on the CPU."""
        return draw(self.global_batch_size, self.generator(purpose))

    def normal(self, purpose: str, rows_B: Tensor, num: int) -> Tensor:
        """Return standard normal noise of shape (B, num) for rows of the global batch."""
        noise = torch.randn(self.global_batch_size, num, generator=self.generator(purpose))
        return noise.to(self.device, self.dtype)[rows_B]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, on the device."""

    x_BCHW: Tensor
    """Images in [0, 1]; vectors as they are, (B, D)."""
    weights_B: Tensor
    """ranks / unmasked samples of the global batch; 0 for a masked row and for its prior sample.

    Summed with these weights and averaged over ranks, losses are means over the global batch, also
    when ranks hold different numbers of rows.
    """
    z_prior_BZ: Tensor
    noise_reconstruction_BN: Tensor
    noise_regularization_BN: Tensor
    rows_B: Tensor
    """Numbers of the rows in the global batch, int64."""
    draws: Draws
    """What else the step needs of randomness."""

    def split(self, size: int) -> list["MicroBatch"]:
        """Return consecutive parts of at most `size` rows."""
        names = [field.name for field in fields(self) if field.name != "draws"]
        columns = [getattr(self, name).split(size) for name in names]
        parts = (dict(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True))
        return [MicroBatch(**part, draws=self.draws) for part in parts]


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

    def parts(self, images: Tensor, valid: Tensor, num_valid: int, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches.

        Args:
            images: uint8, (B, C, H, W), or floats of any shape (B, ...); this rank's rows.
            valid: bool, (B); masked rows get weight 0.
            num_valid: unmasked samples of the global batch, alike on all ranks.
            step: number of the step, from 0.
        """
        device = self.world.device
        draws = Draws(self.seed, step, self.global_batch_size, device, self.dtype)
        weight = self.world.size / max(num_valid, 1)  # with no good sample all weights are 0
        weights_B = valid.to(device, self.dtype, non_blocking=True) * weight
        x = images.to(device, non_blocking=True).to(self.dtype)
        part = MicroBatch(
            x_BCHW=x.div_(255) if images.dtype == torch.uint8 else x,
            weights_B=weights_B,
            z_prior_BZ=self._own(draws, "prior", self.prior.sample),
            noise_reconstruction_BN=self._own(draws, "noise of reconstruction", self._noise),
            noise_regularization_BN=self._own(draws, "noise of regularization", self._noise),
            rows_B=torch.arange(self.rows.start, self.rows.stop, device=device),
            draws=draws,
        )
        return part.split(self.micro_batch_size or len(images))

    def _own(
        self, draws: Draws, purpose: str, draw: Callable[[int, torch.Generator], Tensor]
    ) -> Tensor:
        samples = draws.of_global_batch(purpose, draw)
        return samples[self.rows].to(draws.device, self.dtype, non_blocking=True)

    def _noise(self, num_samples: int, generator: torch.Generator) -> Tensor:
        noise_dim = self.posterior.noise_dim(self.prior.latent_dim)
        return torch.randn(num_samples, noise_dim, generator=generator)
