"""Codes in parts: posteriors side by side, and adversaries that train as separate networks."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import MODELS, build, global_batch, tiny_config
from torch import Tensor, nn

from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.models import (
    CategoricalPosterior,
    GaussianPosterior,
    PartwiseDiscriminator,
    ProductPosterior,
    UniversalPosterior,
    build_networks,
    build_posterior,
)
from aae_dist.models.own import check_network

PARTS: dict[str, Any] = {
    "kind": "product",
    "parts": (
        {"dims": 3, "prior": {"kind": "categorical"}},
        {"dims": 1, "prior": {"kind": "gaussian", "std": 2.0}},
        {"dims": 2, "prior": {"kind": "mixture", "num_modes": 3}},
    ),
}
MODEL = {**MODELS["mlp"], "latent_dim": 6}


def test_each_part_of_a_posterior_reads_its_own_outputs_and_noise() -> None:
    posterior = ProductPosterior([(3, CategoricalPosterior()), (2, GaussianPosterior())])
    assert (posterior.num_outputs(5), posterior.noise_dim(5)) == (7, 2)
    outputs, noise = torch.randn(4, 7), torch.randn(4, 2)
    z = posterior.sample(outputs, noise)
    assert torch.equal(z[:, :3], outputs[:, :3].softmax(1))
    assert torch.equal(z[:, 3:], outputs[:, 3:5] + outputs[:, 5:].exp() * noise)
    assert torch.equal(posterior.mean(outputs)[:, 3:], outputs[:, 3:5])


def test_a_universal_posterior_gives_its_noise_to_the_encoder() -> None:
    posterior = ProductPosterior([(3, CategoricalPosterior(True)), (2, UniversalPosterior(4))])
    assert (posterior.num_outputs(5), posterior.noise_dim(5)) == (5, 4)
    assert posterior.encoder_noise_dim == 4
    outputs = torch.randn(6, 5)
    z = posterior.sample(outputs, torch.randn(6, 4))
    assert torch.equal(z[:, :3], F.one_hot(outputs[:, :3].argmax(1), 3).float())
    assert torch.equal(z[:, 3:], outputs[:, 3:])


def test_a_product_without_classes_keeps_the_run_posterior() -> None:
    parts = ({"dims": 2, "prior": {"kind": "gaussian"}}, {"dims": 2, "prior": {"kind": "laplace"}})
    config = tiny_config(prior={"kind": "product", "parts": parts}, posterior={"kind": "gaussian"})
    assert isinstance(build_posterior(config.posterior, config.prior), GaussianPosterior)


def test_logits_of_a_part_depend_on_its_columns_alone() -> None:
    config = tiny_config(prior=PARTS, model=MODEL)
    network = build_networks(config, (1, 6, 6), single_world().device).discriminator
    assert isinstance(network, PartwiseDiscriminator)
    z = torch.randn(5, 6, dtype=torch.float64)
    before = network(z)
    assert before.shape == (5, 3)
    for columns, part in zip(network.columns, range(3), strict=True):
        moved = z.clone()
        moved[:, columns] += 1
        changed = (network(moved) != before).any(0)
        assert changed.tolist() == [part == other for other in range(3)]
    check_network("discriminator", network, (z,), (5, 3), trains=True)


def softplus_losses(network: nn.Module, z_prior: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    logits_prior, logits_codes = network(torch.cat([z_prior, z])).chunk(2)
    return logits_prior, F.softplus(-logits_prior) + F.softplus(logits_codes)


@pytest.mark.parametrize("r1_weight", [0.0, 0.3])
def test_adversaries_of_parts_equal_separate_networks_with_their_own_adams(
    r1_weight: float,
) -> None:
    method = {"kind": "adversarial", "balance": "none", "r1_weight": r1_weight, "r1_every": 2}
    config = tiny_config(prior=PARTS, model=MODEL, method=method)
    networks, ours, inputs = build(config, single_world())
    assert isinstance(ours, AdversarialMethod)
    discriminator = networks.discriminator
    assert isinstance(discriminator, PartwiseDiscriminator)
    apart = [copy.deepcopy(network) for network in discriminator.networks]
    settings = {"lr": ours.optimizers["discriminator"].base_lr, "betas": (0.5, 0.999)}
    adams = [torch.optim.Adam(n.parameters(), **settings, fused=True) for n in apart]
    for step in range(8):
        images, valid = global_batch(config, step)
        parts = inputs.parts(images, valid, int(valid.sum()), step)
        # What the phase reads, before it trains.
        encoded = ours.encode_once(parts, lambda part: part.noise_regularization_BN)
        seen = [(e.part, e.z_BZ.detach().clone()) for e in encoded]
        ours.optimizers["discriminator"].update_terms(ours.discriminator_loss, encoded)
        for network, adam, columns in zip(apart, adams, discriminator.columns, strict=True):
            for part, z in seen:
                own = part.z_prior_BZ[:, columns].contiguous()
                own.requires_grad_(bool(r1_weight))
                logits_prior, losses = softplus_losses(network, own, z[:, columns].contiguous())
                loss = part.weights_B @ losses
                if r1_weight and step % 2 == 0:
                    (slope,) = torch.autograd.grad(logits_prior.sum(), own, create_graph=True)
                    square = slope.square().sum(1)
                    loss = loss + 0.5 * r1_weight * 2 * (part.weights_B @ square)
                loss.backward()
            adam.step()
            adam.zero_grad()
        for mine, other in zip(discriminator.networks, apart, strict=True):
            for p, q in zip(mine.parameters(), other.parameters(), strict=True):
                # Some processors round sums of products of another layout differently.
                torch.testing.assert_close(p, q, rtol=0, atol=1e-15)


def test_the_generator_of_parts_is_the_sum_of_the_games() -> None:
    config = tiny_config(prior=PARTS, model=MODEL, method={"kind": "adversarial"})
    networks, ours, inputs = build(config, single_world())
    assert isinstance(ours, AdversarialMethod)
    discriminator = networks.discriminator
    assert isinstance(discriminator, PartwiseDiscriminator)
    images, valid = global_batch(config, 0)
    encoded = ours.encode_once(
        inputs.parts(images, valid, 24, 0), lambda part: part.noise_regularization_BN
    )
    loss, _ = ours.generator_loss(encoded[0])
    z = encoded[0].z_BZ.detach()
    each = [
        F.softplus(-network(z[:, columns])).mean().detach()
        for network, columns in zip(discriminator.networks, discriminator.columns, strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(ours.weight * float(sum(each)), rel=1e-12)
