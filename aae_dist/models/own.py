"""Users' networks, by import path, checked before training starts."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aae_dist.config.sections import model as sections
from aae_dist.errors import ConfigError

CONVERT = (
    "wrap the network in aae_dist.models.replace_batch_norm (GroupNorm, or statistics='frozen' for "
    "a pretrained one)"
)
NAMED = 5
"""Parameters that a message names."""


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
