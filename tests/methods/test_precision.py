"""bfloat16 and compiled code against plain fp32, on real digits and in whole steps."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import MODELS, SHAPE, build, tiny_config, train_steps
from torch import Tensor

from aae_dist.data import open_dataset
from aae_dist.distributed.wrappers import ComputeWrapper
from aae_dist.losses import cross_entropy_sum
from aae_dist.methods import StepInputs, build_method
from aae_dist.methods.method import Modules
from aae_dist.models import Networks, build_networks, build_posterior
from aae_dist.priors import build_prior

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]
BATCH, STEPS = 48, 200


def digits() -> Tensor:
    config = tiny_config().data
    return open_dataset("builtin://digits/train", config).read(np.arange(2000))[0]


LAYERS = {"encoder_widths": (128,), "decoder_widths": (128,), "discriminator_widths": (64,)}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {**LAYERS, "latent_dim": 8},
    "conv": {**MODELS["conv"], "latent_dim": 8},
}


def error_after_training(precision: str, model: str, loss: str) -> float:
    """Return the squared error a pixel, in fp32, of digits that were not trained on."""
    torch.set_num_threads(1)
    train = {"steps": STEPS, "global_batch_size": BATCH, "precision": precision}
    game = {"kind": "adversarial", "reconstruction_loss": loss}
    config = tiny_config(model=NETWORKS[model], train=train, method=game)
    images, world = digits(), single_world()
    prior, shape = build_prior(config.prior, 8), (1, 28, 28)
    networks = build_networks(config, shape, world.device)
    method = build_method(config, networks, prior, shape, world)
    posterior = build_posterior(config.posterior, config.prior)
    inputs = StepInputs(0, prior, posterior, slice(0, BATCH), BATCH, None, world, torch.float32)
    valid, generator = torch.ones(BATCH, dtype=torch.bool), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        chosen = torch.randint(1500, (BATCH,), generator=generator)
        method.set_progress(step / STEPS)
        method.step(inputs.parts(images[chosen], valid, BATCH, step))
    with torch.no_grad():
        x = images[1500:].float() / 255
        return float((networks.decoder(networks.encoder(x)) - x).square().mean())


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("mlp", "sum_half"),
        pytest.param("mlp", "bce", marks=pytest.mark.slow),
        pytest.param("conv", "sum_half", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_reconstructs_within_two_percent_of_fp32(model: str, loss: str) -> None:
    full, half = (error_after_training(p, model, loss) for p in ("fp32", "bf16"))
    assert full < 0.05  # it has learnt: the variance of the pixels is 0.1
    assert abs(half / full - 1) < 0.02, (half, full)
    assert half != full


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "tree", [{}, {"posterior": {"kind": "universal"}}, {"model": MODELS["conv"]}]
)
def test_compiled_steps_equal_eager_ones(tree: dict[str, Any]) -> None:
    train = {"steps": 100, "global_batch_size": 24, "precision": "fp64"}
    expected, _ = train_steps(single_world(), {**tree, "train": train}, 20)
    got, _ = train_steps(single_world(), {**tree, "train": {**train, "compile": True}}, 20)
    for got_step, wanted in zip(got, expected, strict=True):
        assert got_step == pytest.approx(wanted, abs=1e-9)


def in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, model: str, compiled: bool
) -> tuple[Networks, Modules]:
    """Return networks, and what training calls; code is checked before Inductor's kernels."""
    monkeypatch.setattr(ComputeWrapper, "BACKEND", "aot_eager")
    train = {"steps": 9, "global_batch_size": 24, "precision": "bf16", "compile": compiled}
    networks, method, _ = build(tiny_config(model=MODELS[model], train=train), single_world())
    return networks, method.modules


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_codes_and_pixels_are_not_rounded_to_bfloat16(
    monkeypatch: pytest.MonkeyPatch, model: str, compiled: bool
) -> None:
    networks, called = in_bfloat16(monkeypatch, model, compiled)
    z = called.encoder(torch.rand(24, *SHAPE))
    x_hat = called.decoder(z)
    for exact in (z, x_hat):
        assert exact.dtype == torch.float32
        assert not torch.equal(exact, exact.bfloat16().float())
    full = networks.decoder(z)
    assert not torch.equal(x_hat, full)  # the products were in bfloat16
    assert torch.allclose(x_hat, full, atol=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_a_pixel_near_white_keeps_its_gradient_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    networks, called = in_bfloat16(monkeypatch, model, compiled=False)
    bias = list(networks.decoder.parameters())[-1]
    with torch.no_grad():
        bias.fill_(9.0)  # sigmoid(9) = 0.99988; bfloat16 has 0.996, and then 1
    x_hat = called.decoder(torch.randn(24, 4))
    cross_entropy_sum(x_hat, torch.full_like(x_hat, 0.5)).sum().backward()
    assert float(x_hat.detach().max()) < 1
    assert bias.grad is not None
    assert bool((bias.grad > 1).all())
