"""The largest micro-batch that fits the device: `train.micro_batch_size: auto`.

Not run on a GPU so far: the search is tested with networks that run out of memory on purpose.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from aae_dist.distributed.world import World, run_on_all_ranks
from aae_dist.distributed.wrappers import trainable_parameters, unwrap_ddp
from aae_dist.errors import LaunchError
from aae_dist.methods.method import Modules
from aae_dist.models import run_encoder


def largest_that_fits(share: int, fits: Callable[[int], bool]) -> int:
    """Return the first of share, share / 2, ... 1 that fits.

    Raises:
        LaunchError: not even one sample fits.
    """
    size = share
    while not fits(size):
        if size == 1:
            raise LaunchError(
                "not even one sample fits the device's memory (train.micro_batch_size=auto); use a "
                "smaller model, train.precision=bf16 or a larger GPU"
            )
        size = -(-size // 2)
    return size


def measure(share: int, fits: Callable[[int], bool], world: World) -> int:
    """Return the size that fits on every rank; a collective.

    Raises:
        LaunchError: on every rank, if one cannot hold a single sample.
    """
    found = run_on_all_ranks(world, lambda: largest_that_fits(share, fits))
    smallest = torch.tensor([found], device=world.device)
    if world.size > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


class Trial:
    """Tries whether a step fits the memory, without a collective and without changing networks."""

    def __init__(self, modules: Modules, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Call the networks as training does, in bfloat16 or compiled.

        Args:
            modules: of the method; its optimizers have allocated their state.
            shape: of this rank's share of the global batch, (B, C, H, W).
            dtype: of pixels and codes.
        """
        self._posterior, self._z_dim = modules.posterior, modules.prior.latent_dim
        self._encoder, self._decoder = unwrap_ddp(modules.encoder), unwrap_ddp(modules.decoder)
        self._discriminator = modules.discriminator and unwrap_ddp(modules.discriminator)
        self._shape, self._dtype = shape, dtype

    def __call__(self, size: int) -> bool:
        """Return whether forward and backward of `size` samples fit."""
        buffers = [(b, b.clone()) for module in self._networks() for b in module.buffers()]
        try:
            self._step(size)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        for buffer, before in buffers:  # a network of the user may have some
            buffer.copy_(before)
        torch.cuda.empty_cache()  # does nothing where CUDA was not used
        return fits

    def _networks(self) -> list[nn.Module]:
        networks = (self._encoder, self._decoder, self._discriminator)
        return [network for network in networks if network is not None]

    def _step(self, size: int) -> None:
        parameters = [p for m in self._networks() for p in trainable_parameters(m).values()]
        # The whole share is on the device during a step, and with several micro-batches so is the
        # sum of the gradients of those before.
        share_BCHW = torch.zeros(self._shape, dtype=self._dtype, device=parameters[0].device)
        summed = [torch.empty_like(p) for p in parameters] if size < len(share_BCHW) else []
        x_BCHW = share_BCHW[:size]
        noise_BN = x_BCHW.new_zeros(len(x_BCHW), self._posterior.noise_dim(self._z_dim))
        outputs_BP = run_encoder(self._encoder, self._posterior, x_BCHW, noise_BN)
        z_BZ = self._posterior.sample(outputs_BP, noise_BN)
        loss = (self._decoder(z_BZ) - x_BCHW).square().sum()
        if self._discriminator is not None:
            loss = loss + self._discriminator(torch.cat([z_BZ.detach(), z_BZ])).sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        del summed
