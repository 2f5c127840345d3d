"""bfloat16 and compiled code against plain fp32, on real digits and in whole steps."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import tiny_config, train_steps
from torch import Tensor

from aae_dist.data import open_dataset
from aae_dist.methods import StepInputs, build_method
from aae_dist.models import build_networks, build_posterior
from aae_dist.priors import build_prior

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]
BATCH, STEPS = 48, 500


def digits() -> Tensor:
    config = tiny_config().data
    return open_dataset("builtin://digits/train", config).read(np.arange(2000))[0]


def error_after_training(precision: str) -> float:
    """Return the squared error a pixel, in fp32, of digits that were not trained on."""
    torch.set_num_threads(1)
    model = {"encoder_widths": (128,), "decoder_widths": (128,), "discriminator_widths": (64,)}
    train = {"steps": STEPS, "global_batch_size": BATCH, "precision": precision}
    config = tiny_config(model={**model, "latent_dim": 8}, train=train)
    images, world = digits(), single_world()
    prior, shape = build_prior(config.prior, 8), (1, 28, 28)
    networks = build_networks(config, shape, world.device)
    method = build_method(config, networks, prior, shape, world)
    posterior = build_posterior(config.posterior)
    inputs = StepInputs(0, prior, posterior, slice(0, BATCH), BATCH, None, world, torch.float32)
    valid, generator = torch.ones(BATCH, dtype=torch.bool), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        chosen = torch.randint(1500, (BATCH,), generator=generator)
        method.set_progress(step / STEPS)
        method.step(inputs.parts(images[chosen], valid, BATCH, step))
    with torch.no_grad():
        x = images[1500:].float() / 255
        return float((networks.decoder(networks.encoder(x)) - x).square().mean())


def test_bfloat16_reconstructs_within_two_percent_of_fp32() -> None:
    full, half = error_after_training("fp32"), error_after_training("bf16")
    assert full < 0.05  # it has learnt: the variance of the pixels is 0.1
    assert abs(half / full - 1) < 0.02, (half, full)
    assert half != full


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("tree", [{}, {"posterior": {"kind": "universal"}}])
def test_compiled_steps_equal_eager_ones(tree: dict[str, Any]) -> None:
    train = {"steps": 100, "global_batch_size": 24, "precision": "fp64"}
    expected, _ = train_steps(single_world(), {**tree, "train": train}, 20)
    got, _ = train_steps(single_world(), {**tree, "train": {**train, "compile": True}}, 20)
    for got_step, wanted in zip(got, expected, strict=True):
        assert got_step == pytest.approx(wanted, abs=1e-9)
