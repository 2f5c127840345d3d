"""Users' networks, by import path: checked before training starts, with weights from a file.

Batch normalization makes a sample's result depend on the other samples of its rank, and keeps
statistics that ranks and resumed runs would have to share: `replace_batch_norm` replaces it.
"""

import copy
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aae_dist.config.sections import model as sections
from aae_dist.errors import ConfigError

CONVERT = (
    "wrap the network in aae_dist.models.replace_batch_norm (GroupNorm, or statistics='frozen' for "
    "a pretrained one)"
)
NAMED = 5
"""Parameters that a message names."""
MAX_GROUPS = 32
"""Groups of a replacing GroupNorm at most, as in Wu and He 2018 (arXiv 1803.08494)."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def import_network(key: str, config: sections.OwnNetwork, roles: Mapping[str, Any]) -> nn.Module:
    """Return an instance of the class that `config` names; ConfigError when that fails.

    `key` is the configuration's, such as model.encoder. `roles` are the keyword arguments that the
    network's role gives it, such as latent_dim.
    """
    module, name = config.path.split(":")
    wanted = ", ".join([*roles, *config.arguments])
    try:
        found = getattr(importlib.import_module(module), name)
        # Asked before it is called: a saved configuration must not call whatever it names.
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise TypeError("it must be a torch.nn.Module")
        network: nn.Module = found(**roles, **config.arguments)
    except Exception as error:  # a user's code may raise anything; the user has to fix it
        raise ConfigError(
            f"{key}.path: {config.path} failed with {type(error).__name__}: {error}; it must "
            f"be a class that takes the keyword arguments {wanted}"
        ) from error
    return network


def check_network(
    key: str, network: nn.Module, inputs: tuple[Tensor, ...], shape: tuple[int, ...], trains: bool
) -> None:
    """Raise ConfigError unless the network maps `inputs` to `shape`, each row by itself.

    If it `trains`, gradients must reach all of its parameters. `key` names the network in errors.
    """
    try:
        text = _problem_of_results(network, inputs, shape)
        if trains and not text:
            # Codes that reach decoder and discriminator have gradients, images have none.
            with_graph = [i.clone().requires_grad_(key != "model.encoder") for i in inputs]
            text = _problem_of_gradients(network, with_graph)
    except Exception as error:  # as above
        text = f"failed with {type(error).__name__}: {error}"
    if text:
        raise ConfigError(f"{key}: {type(network).__name__} {text}")


@torch.no_grad()
def _problem_of_results(
    network: nn.Module, inputs: tuple[Tensor, ...], shape: tuple[int, ...]
) -> str | None:
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    first = network(*inputs)
    if not isinstance(first, Tensor) or tuple(first.shape) != shape:
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        shapes = " and ".join(str(tuple(i.shape)) for i in inputs)
        return f"must map a batch of shape {shapes} to {shape}; got {got}"
    if not bool(first.isfinite().all()):
        return "gives numbers that are not finite, for inputs in [0, 1]"
    for name, buffer in network.named_buffers():
        if not torch.equal(buffers[name], buffer):
            return (
                f"changes its buffer {name} when it runs, so that ranks would drift apart; for "
                f"BatchNorm {CONVERT}"
            )
    if not torch.equal(first, network(*inputs)):
        return (
            "gives another result each time, so that a resumed run would not repeat; leave out "
            "dropout (nn.Dropout(0) draws nothing); reproducible noise comes from "
            "method.image_noise and posterior.kind=gaussian or universal"
        )
    half = len(first) // 2
    alone = network(*(values[:half] for values in inputs))
    scale = float(first.abs().max())
    if not torch.allclose(alone, first[:half], rtol=1e-3, atol=1e-4 * scale):
        return (
            "makes a sample's result depend on the other samples of its batch, so that runs "
            f"would depend on the number of ranks; for BatchNorm {CONVERT}"
        )
    return None


def _problem_of_gradients(network: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return why a parameter gets no gradient, which other ranks would wait for."""
    training = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not training:
        return "has no parameter to train; keep requires_grad=True for those that should be trained"
    with torch.enable_grad():
        total = network(*inputs).sum()
        unused = list(training)
        if total.requires_grad:
            # With the inputs' own, so that no part of the network is passed over.
            wanted = [*training.values(), *(i for i in inputs if i.requires_grad)]
            found: Sequence[Tensor | None] = torch.autograd.grad(total, wanted, allow_unused=True)
            unused = [n for n, gradient in zip(training, found, strict=False) if gradient is None]
    if not unused:
        return None
    more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
    return (
        f"has parameters that no gradient reaches: {', '.join(unused[:NAMED])}{more}; call "
        "requires_grad_(False) on those that must not change, and remove unused ones"
    )


@torch.no_grad()
def check_unit_range(key: str, network: nn.Module, codes: Tensor) -> None:
    """Raise ConfigError unless a user's decoder stays in [0, 1], as bce needs."""
    low, high = (float(bound) for bound in torch.aminmax(network(codes)))
    if low < 0 or high > 1:
        raise ConfigError(
            f"{key}: {type(network).__name__} gives numbers from {low:g} to {high:g}, and "
            "method.reconstruction_loss=bce needs [0, 1]; end with a sigmoid, or use another loss"
        )


class FrozenBatchNorm(nn.Module):
    """Batch normalization by constant statistics: y = weight * (x - mean) / sqrt(var + eps) + bias.

    The names are those of `torch.nn.BatchNorm2d`, so its weights can be loaded. Nothing trains.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: _BatchNorm) -> None:
        """Copy scale, offset and statistics of `source`; ConfigError if it has no statistics."""
        super().__init__()
        if source.running_mean is None or source.running_var is None:
            raise ConfigError(
                "replace_batch_norm: a BatchNorm without running statistics cannot be frozen; use "
                "statistics='group'"
            )
        ones = torch.ones_like(source.running_mean)
        found = {
            "weight": source.weight if source.affine else ones,
            "bias": source.bias if source.affine else ones * 0,
            "running_mean": source.running_mean,
            "running_var": source.running_var,
        }
        for name, values in found.items():
            constant = nn.Parameter(values.detach().clone(), requires_grad=False)
            self.register_parameter(name, constant)
        self.eps = source.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        normalized: Tensor = (x - self.running_mean.view(shape)) * scale.view(shape)
        return normalized + self.bias.view(shape)


def replace_batch_norm(module: nn.Module, statistics: str = "group") -> nn.Module:
    """Return a copy of a network without batch normalization, which own networks cannot have.

    Args:
        module: any network; its device and dtype are kept.
        statistics: group: GroupNorm with the same scale and offset, for networks that are trained
            from new. What is lost are the running statistics: the network computes other numbers
            than before. frozen: the same numbers as the network gives after `eval()`, by statistics
            and affine parameters that never change, for pretrained networks.

    Raises:
        ConfigError: `statistics` is neither, or a layer has none to freeze.
    """
    if statistics not in ("group", "frozen"):
        raise ConfigError(f"statistics: should be group or frozen (got {statistics!r})")
    if isinstance(module, _BatchNorm):
        return FrozenBatchNorm(module) if statistics == "frozen" else _group_norm(module)
    module = copy.deepcopy(module)
    layers = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
    for name, layer in layers.items():
        parent, _, key = name.rpartition(".")
        setattr(module.get_submodule(parent), key, replace_batch_norm(layer, statistics))
    return module


def _group_norm(layer: _BatchNorm) -> nn.GroupNorm:
    num = layer.num_features
    # At least two channels per group: (B, C) inputs of one each would be normalized to zero.
    groups = max(1, math.gcd(num, MAX_GROUPS) if num > MAX_GROUPS else num // 2)
    groups = groups if num % groups == 0 else 1
    made = nn.GroupNorm(groups, num, layer.eps, affine=layer.affine)
    if layer.affine:
        made.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
        made.to(layer.weight)
    return made


def load_weights_file(key: str, network: nn.Module, path: str) -> None:
    """Copy the tensors of a safetensors file into a network; others keep their first values.

    Statistics of batch normalization that the network does not have are passed over.

    Args:
        key: the configuration's key, for errors.
        network: has parameters or buffers of all names in the file.
        path: a local file.

    Raises:
        ConfigError: the file cannot be read, or a name or shape in it is not the network's.
    """
    try:
        tensors = load_file(Path(path).expanduser())
    except FileNotFoundError:
        raise ConfigError(f"{key}: {path}: no such file on this machine") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{key}: {path} is no safetensors file ({str(error)!r:.80}); write one by "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), path)"
        ) from None
    own = network.state_dict()
    passed = {name for name in tensors if name.rpartition(".")[2] in STATISTICS and name not in own}
    wanted = {name: tensor for name, tensor in tensors.items() if name not in passed}
    for name, tensor in wanted.items():
        if name not in own:
            has = ", ".join(list(own)[:3])
            raise ConfigError(
                f"{key}: {path}: {name!r:.80} is no weight of the network ({has}, ...)"
            )
        if own[name].shape != tensor.shape:
            raise ConfigError(
                f"{key}: {path}: {name!r:.80} has shape {tuple(tensor.shape)}, and the network "
                f"{tuple(own[name].shape)}"
            )
    if not wanted:
        raise ConfigError(f"{key}: {path} holds no weights")
    network.load_state_dict(wanted, strict=False)
