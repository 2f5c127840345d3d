"""The adversarial step against the paper's algorithm written out slowly, and its cost."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import SHAPE, build, global_batch, run_step, tiny_config

from aae_dist.models import Networks
from aae_dist.utils.tensors import keyed_generator

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999)}
PLAIN_ADAM = {
    "optimizer": {"kind": "adam", "lr": 1e-3, "betas": (0.9, 0.999)},
    "schedule": {"kind": "constant"},
}
PHASES = {phase: PLAIN_ADAM for phase in ("reconstruction", "discriminator", "generator")}


class TextbookLoop:
    """Three encoder passes, requires_grad toggled, torch's default optimizers: obvious and slow."""

    def __init__(self, networks: Networks) -> None:
        self.e, self.d = copy.deepcopy(networks.encoder), copy.deepcopy(networks.decoder)
        self.c = copy.deepcopy(networks.discriminator)
        self.o1 = torch.optim.Adam([*self.e.parameters(), *self.d.parameters()], **ADAM)
        self.o2 = torch.optim.Adam(self.c.parameters(), **ADAM)
        self.o3 = torch.optim.Adam(self.e.parameters(), **ADAM)

    def step(self, x: torch.Tensor, z_prior: torch.Tensor) -> tuple[float, float, float]:
        n, one, zero = len(x), torch.ones(len(x)).to(x), torch.zeros(len(x)).to(x)
        self.o1.zero_grad()
        reconstruction = ((self.d(self.e(x)) - x) ** 2).sum() / 2 / n
        reconstruction.backward()
        self.o1.step()
        self.o2.zero_grad()
        codes = self.e(x).detach()
        bce = F.binary_cross_entropy_with_logits
        discriminator = bce(self.c(z_prior), one) + bce(self.c(codes), zero)
        discriminator.backward()
        self.o2.step()
        self.o3.zero_grad()
        self.c.requires_grad_(False)
        fooling = bce(self.c(self.e(x)), one)
        fooling.backward()
        self.c.requires_grad_(True)
        self.o3.step()
        return reconstruction.item(), discriminator.item(), fooling.item()


def test_twenty_steps_equal_the_textbook_loop_in_float64() -> None:
    config = tiny_config(phases=PHASES, method={"kind": "adversarial", "balance": "none"})
    networks, method, inputs = build(config, single_world())
    textbook = TextbookLoop(networks)
    for step in range(20):
        images, valid = global_batch(config, step)
        z_prior = inputs.prior.sample(len(images), keyed_generator(0, "prior", step))
        x = images[valid].double() / 255
        expected = textbook.step(x, z_prior[valid].double())
        got = run_step(method, inputs, config, step)
        assert [float(v) for v in got.values()] == pytest.approx(expected, rel=1e-9)
    for ours, theirs in zip(networks.encoder.parameters(), textbook.e.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_each_update_changes_its_own_networks_only_bit_for_bit() -> None:
    config = tiny_config()
    networks, method, inputs = build(config, single_world())
    run_step(method, inputs, config, 0)
    trains = {"reconstruction": "encoder decoder", "discriminator": "discriminator"}
    trains["generator"] = "encoder"
    for phase, optimizer in method.optimizers.items():
        before: dict[str, Any] = {}

        def remember(*_: object, before: dict[str, Any] = before) -> None:
            before.update({n: copy.deepcopy(m.state_dict()) for n, m in networks.named().items()})

        def compare(*_: object, before: dict[str, Any] = before, phase: str = phase) -> None:
            for name, network in networks.named().items():
                same = all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items())
                assert same == (name not in trains[phase]), (phase, name)

        optimizer.optimizer.register_step_pre_hook(remember)
        optimizer.optimizer.register_step_post_hook(compare)
    assert networks.discriminator is not None
    frozen = copy.deepcopy(networks.discriminator.state_dict())
    generator_phase = method.optimizers["generator"]
    original = generator_phase.update

    def update(*arguments: Any, **options: Any) -> Any:
        frozen.update(copy.deepcopy(networks.discriminator.state_dict()))  # type: ignore[union-attr]
        loss = original(*arguments, **options)
        assert all(p.grad is None for p in networks.discriminator.parameters())  # type: ignore[union-attr]
        return loss

    generator_phase.update = update  # type: ignore[method-assign]
    run_step(method, inputs, config, 1)
    after = networks.discriminator.state_dict()
    assert all(torch.equal(after[key], frozen[key]) for key in after)


def minimum_flops(config: Any, samples: int) -> int:
    """Return 2 encoder, 1 decoder and 2 + 1 discriminator passes with the backward they need."""
    model, pixels = config.model, math.prod(SHAPE)

    def products(sizes: list[int]) -> tuple[int, int]:
        pairs = [a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        return 2 * sum(pairs), 2 * pairs[0]

    encoder, encoder_first = products([pixels, *model.encoder_widths, model.latent_dim])
    decoder, _ = products([model.latent_dim, *model.decoder_widths, pixels])
    critic, critic_first = products([model.latent_dim, *model.discriminator_widths, 1])
    reconstruction = 3 * encoder + 3 * decoder - encoder_first
    discriminator = encoder + 2 * (3 * critic - critic_first)
    generator = critic + critic + 2 * encoder - encoder_first
    return samples * (reconstruction + discriminator + generator)


def test_flops_of_a_step_are_the_minimum() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(method={"kind": "adversarial", "balance": "none"})
    _, method, inputs = build(config, single_world())
    run_step(method, inputs, config, 0)
    with FlopCounterMode(display=False) as counter:
        run_step(method, inputs, config, 1)
    assert counter.get_total_flops() == minimum_flops(config, config.train.global_batch_size)
