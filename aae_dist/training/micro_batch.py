"""How many samples a forward pass may have on this device: `train.micro_batch_size: auto`.

Not run on a GPU so far: the search is tested with networks that run out of memory on purpose.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.distributed.data_parallel import trainable
from aae_dist.distributed.reductions import together
from aae_dist.distributed.world import World
from aae_dist.errors import LaunchError
from aae_dist.models import Networks, Posterior, run_encoder


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
    """Return the size that fits on every rank; a collective, of which each measures by itself.

    Raises:
        LaunchError: on every rank, if one cannot hold a single sample.
    """
    found = together(world, lambda: largest_that_fits(share, fits))
    smallest = torch.tensor([found], device=world.device)
    if world.size > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


class Trial:
    """Tries the memory of a step, without a collective and without any trace in the networks."""

    def __init__(
        self, networks: Networks, posterior: Posterior, x_BCHW: Tensor, z_dim: int
    ) -> None:
        """Use rows of `x_BCHW`, which lie on the device, and codes of `z_dim` numbers."""
        self._networks, self._posterior, self._z_dim = networks, posterior, z_dim
        self._x_BCHW = x_BCHW

    def __call__(self, size: int) -> bool:
        """Return whether forward and backward of `size` samples fit."""
        modules = self._networks.named().values()
        buffers = [(b, b.clone()) for module in modules for b in module.buffers()]
        try:
            self._work(self._x_BCHW[:size])
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        for buffer, before in buffers:  # power iterations of spectral norms, for example
            buffer.copy_(before)
        torch.cuda.empty_cache()  # does nothing where CUDA was not used
        return fits

    def _work(self, x_BCHW: Tensor) -> None:
        networks = self._networks
        parameters = [p for m in networks.named().values() for p in trainable(m).values()]
        # What Adam will keep, and it keeps it while a step runs.
        kept = [torch.empty_like(p) for p in parameters for _ in range(2)]
        noise_BN = x_BCHW.new_zeros(len(x_BCHW), self._posterior.noise_dim(self._z_dim))
        outputs_BP = run_encoder(networks.encoder, self._posterior, x_BCHW, noise_BN)
        z_BZ = self._posterior.sample(outputs_BP, noise_BN)
        loss = (networks.decoder(z_BZ) - x_BCHW).square().sum()
        if networks.discriminator is not None:
            loss = loss + networks.discriminator(torch.cat([z_BZ.detach(), z_BZ])).sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        del kept
