"""Networks from elsewhere: batch normalization replaced, and weights read from a file.

Batch normalization makes a sample's result depend on the other samples of its rank, and keeps
statistics that ranks and resumed runs would have to share, so own networks come without it.
"""

import copy
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aae_dist.errors import ConfigError

MAX_GROUPS = 32
"""Groups of a replacing GroupNorm at most, as in Wu and He 2018 (arXiv 1803.08494)."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
