"""Smoothness of class probabilities, and cluster heads: both belong to a code with a class part."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import MODELS, build, global_batch, tiny_config
from torch import Tensor

from aae_dist.config import load_config
from aae_dist.errors import ConfigError
from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.methods.method import MicroBatch
from aae_dist.models import ProductPosterior, cluster_heads
from aae_dist.models.mlp import ClusterHeadDecoder

STYLE = {"dims": 2, "prior": {"kind": "gaussian"}}
PARTS: dict[str, Any] = {
    "model": {**MODELS["mlp"], "latent_dim": 5, "cluster_heads": {"distance": 2.0}},
    "method": {"kind": "adversarial", "smoothness": 0.5, "smoothness_radius": 0.8},
    "prior": {"kind": "product", "parts": (STYLE, {"dims": 3, "prior": {"kind": "categorical"}})},
}


def built() -> tuple[AdversarialMethod, MicroBatch, Any]:
    config = tiny_config(**PARTS)
    networks, method, inputs = build(config, single_world())
    images, valid = global_batch(config, 4)  # with masked rows
    (part,) = inputs.parts(images, valid, int(valid.sum()), 4)
    assert isinstance(method, AdversarialMethod)
    with torch.no_grad():
        for p in method.modules.encoder.parameters():
            p *= 3  # classes that are sure
    return method, part, networks


def log_probabilities(method: AdversarialMethod, x_BCHW: Tensor) -> Tensor:
    posterior = method.modules.posterior
    assert isinstance(posterior, ProductPosterior)
    return posterior.logits(method.modules.encoder(x_BCHW)).log_softmax(1)


def test_the_direction_changes_classes_more_than_random_ones_of_the_same_length() -> None:
    method, part, _ = built()
    assert method.smoothness is not None
    found = float(method.smoothness.divergence(part).detach())
    with torch.no_grad():
        clean = log_probabilities(method, part.x_BCHW)
        draw, others = torch.Generator().manual_seed(0), []
        for _ in range(20):
            r = torch.randn(part.x_BCHW.shape, generator=draw, dtype=torch.float64).flatten(1)
            moved = part.x_BCHW + 0.8 * F.normalize(r).view_as(part.x_BCHW)
            kl = (clean.exp() * (clean - log_probabilities(method, moved))).sum(1)
            others.append(float(part.weights_B @ kl))
    assert 0 < max(others) < found


def test_smoothness_trains_the_encoder_towards_equal_classes_nearby() -> None:
    method, part, _ = built()
    assert method.smoothness is not None
    before = float(method.smoothness.divergence(part).detach())
    optimizer = torch.optim.Adam(method.modules.encoder.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        method.smoothness.divergence(part).backward()
        optimizer.step()
    assert float(method.smoothness.divergence(part).detach()) < 0.5 * before
    _, terms = method.generator_loss(method.encode_once([part], lambda p: p.x_BCHW[:, :0])[0])
    assert float(terms["loss/smoothness"]) < 0.5 * before


def test_masked_rows_and_the_discriminators_weights_do_not_count() -> None:
    method, part, networks = built()
    assert method.smoothness is not None
    masked = part.weights_B == 0
    assert masked.any()
    expected = method.smoothness.divergence(part)
    part.x_BCHW[masked] = 9.0
    assert torch.equal(expected, method.smoothness.divergence(part))
    expected.backward()
    assert all(p.grad is None for p in networks.discriminator.parameters())


def test_the_decoder_reads_the_head_of_the_class_plus_the_style() -> None:
    method, part, networks = built()
    heads = cluster_heads(networks.decoder)
    assert heads is method.heads
    assert heads is not None
    style = torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(3, 2)
    z = torch.cat([style, torch.eye(3, dtype=torch.float64)], 1)
    weights_KS = heads.heads.weight.t()
    assert torch.equal(heads.represent(z), weights_KS + style)
    assert torch.equal(networks.decoder(z), heads.network(weights_KS + style))


def test_the_penalty_is_what_pairs_of_heads_miss_to_the_distance() -> None:
    heads = ClusterHeadDecoder(torch.nn.Identity(), slice(0, 3), slice(3, 5), 2.0, 0.5)
    with torch.no_grad():
        heads.heads.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.5], [5.0, 5.0]]).t())
    assert float(heads.penalty().detach()) == pytest.approx(0.5 * 0.5)
    heads.penalty().backward()
    gradient = heads.heads.weight.grad
    assert gradient is not None
    assert gradient.t().tolist() == [[0.0, 0.5], [0.0, -0.5], [0.0, 0.0]]


def test_the_reconstruction_phase_trains_the_heads() -> None:
    method, part, _ = built()
    assert method.heads is not None
    before = method.heads.heads.weight.detach().clone()
    method.reconstruct([part])
    assert not torch.equal(before, method.heads.heads.weight)


RUN = ["run.name=a", "data.train=builtin://digits/train", "train.steps=3"]
TWO = "prior={kind: product, parts: [{dims: 6, prior: {kind: categorical}}, {dims: 2}]}"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.cluster_heads={}"], "model.cluster_heads: needs prior.kind=product with one"),
        (
            [TWO.replace("{dims: 2}", "{dims: 1}, {dims: 1}"), "model.cluster_heads={}"],
            "(got categorical and gaussian and gaussian)",
        ),
        (["method.smoothness=1"], "a categorical part that is not given (got gaussian)"),
        (
            [TWO.replace("categorical}", "categorical}, given: label"), "method.smoothness=1"],
            "a categorical part that is not given (got categorical and gaussian)",
        ),
        (
            [TWO, "method={smoothness: 1, reconstruction_loss: poisson}"],
            "method.smoothness: is for images and other floats, not for counts",
        ),
    ],
)
def test_what_needs_a_class_part_is_refused_without(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [*RUN, *overrides])
    assert reason in str(caught.value)
