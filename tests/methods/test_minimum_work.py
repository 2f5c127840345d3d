"""The cost of a step is the minimum for every network, in micro-batches and in compiled code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import MODELS, SHAPE, build, run_step, tiny_config
from torch import Tensor, nn

from aae_dist.distributed import wrappers
from aae_dist.models import Networks

ROWS = 24
DISTANCE = 3 * 2 * ROWS * 4 * 128
"""Codes and prior samples onto 128 directions, and the gradient of the codes."""
LARGE = {"latent_dim": 4, "discriminator_widths": (24, 16)}
CHOICES = {
    **MODELS,
    "deep": {"kind": "conv", **LARGE, "encoder_depth": 2, "decoder_depth": 2, "encoder_width": 4},
    "spectral": {**MODELS["mlp"], "discriminator_spectral_norm": True},
}


def flops(work: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def backward(network: nn.Module, inputs: Tensor, into_weights: bool) -> None:
    """Differentiate with respect to the weights, or the inputs, or both if these want it too."""
    wanted = list(network.parameters()) if into_weights else []
    wanted += [inputs] if inputs.requires_grad else []
    network(inputs).sum().backward(inputs=wanted)


def minimum(networks: Networks, encodings: int) -> int:
    """Return what each pass of a step costs alone, added up."""
    e, d, c = networks.encoder, networks.decoder, networks.discriminator
    assert c is not None
    x, z = torch.rand(ROWS, *SHAPE).double(), torch.rand(ROWS, 4).double()
    wanting = z.clone().requires_grad_()
    encode = flops(lambda: e(x).sum())
    return (
        flops(lambda: backward(e, x, into_weights=True))
        + flops(lambda: backward(d, wanting, into_weights=True))
        + flops(lambda: backward(c, torch.cat([z, z]), into_weights=True))
        + flops(lambda: backward(c, wanting, into_weights=False))
        + flops(lambda: backward(e, x, into_weights=True))
        + (encodings - 2) * encode
        + DISTANCE
    )


def count(monkeypatch: pytest.MonkeyPatch, **tree: Any) -> tuple[int, Networks]:
    config = tiny_config(**tree)
    # Inductor's kernels are opaque to the counter; what they are made from is the same graph.
    monkeypatch.setattr(wrappers.ComputeWrapper, "BACKEND", "aot_eager")
    networks, method, inputs = build(config, single_world())
    run_step(method, inputs, config, 0)
    return flops(lambda: run_step(method, inputs, config, 1)), networks


@pytest.mark.parametrize("model", CHOICES)
def test_flops_are_the_minimum_for_every_network(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    counted, networks = count(monkeypatch, model=CHOICES[model])
    assert counted == minimum(networks, encodings=2)


@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_micro_batches_cost_an_encoding_more_per_use_of_codes_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    train = {"steps": 9, "global_batch_size": ROWS, "precision": "fp64", "micro_batch_size": 5}
    counted, networks = count(monkeypatch, model=CHOICES[model], train=train)
    assert counted == minimum(networks, encodings=4)


@pytest.mark.run
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("model", ["mlp", "conv"])
@pytest.mark.run
def test_flops_are_the_minimum_in_compiled_code(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    train = {"steps": 9, "global_batch_size": ROWS, "precision": "fp64", "compile": True}
    counted, networks = count(monkeypatch, model=CHOICES[model], train=train)
    assert counted == minimum(networks, encodings=2)
