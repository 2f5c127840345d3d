"""Networks as training calls them: DDP around each, products in bfloat16, compiled code."""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aae_dist.distributed.world import World
from aae_dist.errors import ConfigError


def data_parallel(module: nn.Module, world: World) -> nn.Module:
    """Return `module` with its gradients averaged over ranks; the module itself when alone."""
    # Buffers are not broadcast before forward passes: those of built-in networks do not exist,
    # those of a user's own are constants (`models.own`).
    if world.size == 1:
        return module
    ids = [world.device.index] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
    # As an argument it would also leave buffers out of the first synchronisation, and it is
    # deprecated since torch 2.13, whose new name older versions lack.
    wrapped.broadcast_buffers = False
    return wrapped


def warm_up_buckets(module: nn.Module, *example: Tensor) -> None:
    """Let DDP rebuild its buckets before the first real step, by throw-away backward passes."""
    # DDP reorders its buckets after the first backward pass. From 3 ranks on, a resumed run would
    # therefore sum gradients in another order than an uninterrupted one, and differ in the last
    # bit.
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


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """Unwrap DDP only: the network in bfloat16 or compiled code, without collectives."""
    inner: nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
    return inner


def unwrap(module: nn.Module) -> nn.Module:
    """Unwrap DDP and compute wrappers; calls to the result exchange no gradients."""
    inner = unwrap_ddp(module)
    return inner.network if isinstance(inner, ComputeWrapper) else inner


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name; a user's network may freeze others."""
    return {name: p for name, p in unwrap(module).named_parameters() if p.requires_grad}


def frozen_view(module: nn.Module) -> nn.Module:
    """Return a module that shares the weights of `module`, now and later, as constants."""
    # Gradients flow through it to its input and never to the weights, not even in compiled code,
    # which would otherwise compute their gradients and discard them.
    network = unwrap(module)
    constants = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    view = copy.deepcopy(network, {**constants, **{id(b): b for b in network.buffers()}})
    inner = unwrap_ddp(module)
    if isinstance(inner, ComputeWrapper):
        return ComputeWrapper(view, inner.in_bfloat16, inner.compiled)
    return view


class ComputeWrapper(nn.Module):
    """Calls a network in bfloat16 or compiled code; its outputs keep the weights' type.

    Evaluation, checkpoints and users hold the network itself, in full precision.
    """

    BACKEND = "inductor"
    """Backend of torch.compile; tests that count products set another one."""

    def __init__(self, network: nn.Module, bfloat16: bool, compiled: bool) -> None:
        super().__init__()
        self.network = network
        self.in_bfloat16, self.compiled = bfloat16, compiled
        # dynamic=False: batches have one size, or two with micro-batches, and each gets its code.
        self._call: Any = network.forward
        if compiled:
            options = inductor_options(next(network.parameters()).device)
            self._call = torch.compile(
                network.forward, dynamic=False, backend=self.BACKEND, options=options
            )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the network; outputs have the dtype of the first input."""
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.in_bfloat16):
            outputs: Tensor = self._call(*inputs)
        return outputs.to(inputs[0].dtype)


def reset_compiler() -> None:
    """Reset torch.compile, so that trials that share a process compile as in separate ones."""
    # torch compiles 8 versions of one class's forward method, then silently runs it uncompiled: the
    # fifth latent size of a sweep would be slower, and its numbers would differ from a rerun's.
    torch.compiler.reset()


def inductor_options(device: torch.device) -> dict[str, Any] | None:
    """Return the compiler's options for a device."""
    # On CUDA, inductor would time kernels and take the fastest order of sums, which may be another
    # one on another node. This is an option and not a setting in `torch._inductor.config`, which
    # holds for one thread: on CUDA, autograd's thread compiles the backward pass.
    if device.type != "cuda":
        return None
    from torch._inductor import config  # takes seconds

    return {"deterministic": True} if hasattr(config, "deterministic") else None


def wrap_compute(network: nn.Module, *, bfloat16: bool, compiled: bool) -> nn.Module:
    """Return the network, or a `ComputeWrapper` around it if either is wanted.

    ConfigError if it cannot be compiled for want of a C or C++ compiler.
    """
    if not bfloat16 and not compiled:
        return network
    if compiled:
        _check_compiler(next(network.parameters()).device.type)
    return ComputeWrapper(network, bfloat16, compiled)


def _check_compiler(device_type: str) -> None:
    if device_type == "cpu":
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise ConfigError("train.compile=true needs a C++ compiler on the CPU; install g++")
    # Triton builds what starts its kernels: triton/runtime/build.py looks for these.
    elif not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        raise ConfigError(
            "train.compile=true needs a C compiler on CUDA, too; install gcc, or name one in CC"
        )
