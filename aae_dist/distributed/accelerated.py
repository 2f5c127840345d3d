"""A network as training calls it: in bfloat16, compiled, or both."""

import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from aae_dist.errors import ConfigError


class Accelerated(nn.Module):
    """Calls a network in bfloat16 or compiled code; its outputs keep the weights' type.

    Evaluation, checkpoints and the user's hands hold the network itself, in full precision.
    """

    BACKEND = "inductor"
    """What torch.compile makes code with; the tests that count products set another."""

    def __init__(self, network: nn.Module, bfloat16: bool, compiled: bool) -> None:
        """Take the network, whether its products are in bfloat16, and whether it is compiled."""
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
        """Return what the network makes of the inputs."""
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.in_bfloat16):
            outputs: Tensor = self._call(*inputs)
        return outputs.to(inputs[0].dtype)

    def around(self, network: nn.Module) -> "Accelerated":
        """Return the same around another network."""
        return Accelerated(network, self.in_bfloat16, self.compiled)


def fresh_compiler() -> None:
    """Let a run be compiled as in a process of its own; trials of a sweep share a process.

    torch makes 8 versions of one class's forward method, then runs it uncompiled without a word:
    the fifth latent size of a sweep would be slower, and other numbers than when it is run again.
    """
    torch.compiler.reset()


def inductor_options(device: torch.device) -> dict[str, Any] | None:
    """Return what code for a device is made with.

    On CUDA kernels would be timed, and the quickest order of sums taken: another one on another
    node. As an option, not in `torch._inductor.config`: that holds for one thread, and on CUDA the
    code of a backward pass is made in autograd's own.
    """
    if device.type != "cuda":
        return None
    from torch._inductor import config  # takes seconds

    return {"deterministic": True} if hasattr(config, "deterministic") else None


def accelerated(network: nn.Module, *, bfloat16: bool, compiled: bool) -> nn.Module:
    """Return the network, or an `Accelerated` around it if anything is wanted.

    Raises:
        ConfigError: code is to be compiled on a machine without the compiler that this takes.
    """
    if not bfloat16 and not compiled:
        return network
    if compiled:
        _check_compiler(next(network.parameters()).device.type)
    return Accelerated(network, bfloat16, compiled)


def _check_compiler(device_type: str) -> None:
    if device_type == "cpu":
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise ConfigError("train.compile=true needs a C++ compiler on the CPU; install g++")
    # Triton builds what starts its kernels: triton/runtime/build.py looks for these.
    elif not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        raise ConfigError(
            "train.compile=true needs a C compiler on CUDA, too; install gcc, or name one in CC"
        )
