"""Inputs of a step: this rank's rows of the global batch and of the step's random draws.

Shapes: B rows on this rank, G rows of the global batch, C H W image, N noise numbers, Z latent_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aae_dist.distributed.world import World
from aae_dist.models import Posterior
from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator, to_device

_ROWS_AT_ONCE = 1024
"""Rows of the global batch that are drawn from one generator."""


@dataclass(frozen=True)
class Draws:
    """The random draws of one step: the same on every rank, whatever the number of ranks.

    Rows of the global batch are drawn in blocks of 1,024, each keyed by (seed, purpose, step,
    block), block 0 without the last key. A rank draws only the blocks of its rows: with 64 ranks of
    256 rows, drawing all of them would take 15 ms of CPU for every 128 numbers per row.
    """

    seed: int
    step: int
    global_batch_size: int
    device: torch.device
    dtype: torch.dtype

    def generator(self, purpose: str) -> torch.Generator:
        """Return the generator, on the CPU, of one purpose."""
        return keyed_generator(self.seed, purpose, self.step)

    def of_rows(
        self, purpose: str, rows: range, draw: Callable[[int, torch.Generator], Tensor]
    ) -> Tensor:
        """Return rows of the global batch, on the device.

        Args:
            purpose: What they are for.
            rows: Their numbers, at least one, without gaps.
            draw: Returns as many independent rows, (num, ...), on the CPU, as it is asked for.
        """
        first = rows.start // _ROWS_AT_ONCE * _ROWS_AT_ONCE
        blocks = []
        for start in range(first, rows.stop, _ROWS_AT_ONCE):
            keys = (start // _ROWS_AT_ONCE,) if start else ()
            num_rows = min(_ROWS_AT_ONCE, self.global_batch_size - start)
            # Copied: an own prior may return the same tensor each time.
            blocks.append(
                draw(num_rows, keyed_generator(self.seed, purpose, self.step, *keys)).clone()
            )
        drawn = torch.cat(blocks)[rows.start - first : rows.stop - first]
        return to_device(drawn, self.device, self.dtype)

    def normal(self, purpose: str, rows: range, num: int) -> Tensor:
        """Return standard normal noise of shape (B, num) for rows of the global batch."""
        return self.of_rows(purpose, rows, lambda n, draw: torch.randn(n, num, generator=draw))


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
    rows: range
    """Numbers of the rows in the global batch."""
    draws: Draws
    """Source of all other random numbers of the step."""

    @property
    def rows_B(self) -> Tensor:  # noqa: N802 - shapes are in the names
        """Numbers of the rows in the global batch, int64, on the device."""
        return torch.arange(self.rows.start, self.rows.stop, device=self.x_BCHW.device)

    def split(self, size: int) -> list["MicroBatch"]:
        """Return consecutive parts of at most `size` rows."""
        starts = range(0, len(self.rows), size)
        return [self._part(slice(start, start + size)) for start in starts]

    def _part(self, part: slice) -> "MicroBatch":
        return replace(
            self,
            x_BCHW=self.x_BCHW[part],
            weights_B=self.weights_B[part],
            z_prior_BZ=self.z_prior_BZ[part],
            noise_reconstruction_BN=self.noise_reconstruction_BN[part],
            noise_regularization_BN=self.noise_regularization_BN[part],
            rows=self.rows[part],
        )


@dataclass(frozen=True)
class StepInputs:
    """Makes the parts of a step; randomness is keyed by (seed, purpose, step) only.

    Nothing is keyed by rank, so a run does not depend on the number of ranks.
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
            num_valid: unmasked samples of the global batch, the same on all ranks.
            step: number of the step, from 0.
        """
        device = self.world.device
        draws = Draws(self.seed, step, self.global_batch_size, device, self.dtype)
        rows = range(self.rows.start, self.rows.stop)
        noise_dim = self.posterior.noise_dim(self.prior.latent_dim)
        weight = self.world.size / max(num_valid, 1)  # with no good sample all weights are 0
        weights_B = valid.to(device, self.dtype, non_blocking=True) * weight
        x = images.to(device, non_blocking=True).to(self.dtype)
        part = MicroBatch(
            x_BCHW=x.div_(255) if images.dtype == torch.uint8 else x,
            weights_B=weights_B,
            z_prior_BZ=draws.of_rows("prior", rows, self.prior.sample),
            noise_reconstruction_BN=draws.normal("noise of reconstruction", rows, noise_dim),
            noise_regularization_BN=draws.normal("noise of regularization", rows, noise_dim),
            rows=rows,
            draws=draws,
        )
        return part.split(self.micro_batch_size or len(images))
