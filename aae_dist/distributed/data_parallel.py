"""One DistributedDataParallel per network."""

import contextlib
import copy
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aae_dist.distributed.accelerated import Accelerated
from aae_dist.distributed.world import World


def data_parallel(module: nn.Module, world: World) -> nn.Module:
    """Return `module` with its gradients averaged over ranks; the module itself when alone.

    Buffers are not broadcast before forward passes: those of built-in networks do not exist, those
    of a user's own are constants (`models.own`).
    """
    if world.size == 1:
        return module
    ids = [world.device.index] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
    # As an argument it would also leave buffers out of the first synchronisation, and it is
    # deprecated since torch 2.13, whose new name older versions lack.
    wrapped.broadcast_buffers = False
    return wrapped


def settle(module: nn.Module, *example: Tensor) -> None:
    """Let DDP rebuild its buckets before the first real step, by throw-away backward passes.

    DDP reorders its buckets after the first backward pass, so from 3 ranks on a resumed run would
    sum gradients in another order than an unbroken one: equal, but not bit for bit.
    """
    if isinstance(module, DistributedDataParallel):
        for _ in range(2):
            module(*example).sum().backward()
        module.zero_grad(set_to_none=True)


@contextlib.contextmanager
def without_sync(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep gradients local: for all but the last micro-batch of an update."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def local(module: nn.Module) -> nn.Module:
    """Return what a rank computes with, in bfloat16 or compiled code, outside of any collective."""
    inner: nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
    return inner


def bare(module: nn.Module) -> nn.Module:
    """Return the network itself, whose use moves no gradient."""
    inner = local(module)
    return inner.network if isinstance(inner, Accelerated) else inner


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name: a user's network may freeze others."""
    return {name: p for name, p in bare(module).named_parameters() if p.requires_grad}


def frozen_view(module: nn.Module) -> nn.Module:
    """Return a module that computes with what `module` holds, now and later, as constants.

    Gradients flow through it to its input and never to the weights, not even in compiled code,
    which would otherwise compute them and throw them away.
    """
    network = bare(module)
    constants = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    view = copy.deepcopy(network, {**constants, **{id(b): b for b in network.buffers()}})
    inner = local(module)
    return inner.around(view) if isinstance(inner, Accelerated) else view
