"""R1, noise on the discriminator's input and the generator's gradient, each by its formula."""

from typing import Any

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import build, global_batch, run_step, tiny_config
from torch import Tensor, nn

from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.methods.method import Encoded, MicroBatch

SGD = {"optimizer": {"kind": "sgd", "lr": 1e-2, "momentum": 0.0}, "schedule": {"kind": "constant"}}
ADAM = {"optimizer": {"kind": "adam", "lr": 1e-3, "eps": 1e-12}, "schedule": {"kind": "constant"}}


def part_of(step: int, **method: Any) -> tuple[AdversarialMethod, MicroBatch]:
    """Return a method and the one part of a step; that of step 4 has masked rows."""
    config = tiny_config(method={"kind": "adversarial", "balance": "none", **method})
    _, built, inputs = build(config, single_world())
    assert isinstance(built, AdversarialMethod)
    images, valid = global_batch(config, step)
    (part,) = inputs.parts(images, valid, int(valid.sum()), step)
    return built, part


def encoded(method: AdversarialMethod, part: MicroBatch) -> Encoded:
    return method.encode_once([part], lambda p: p.noise_regularization_BN)[0]


def squared_gradient(discriminator: nn.Module, z_Z: Tensor) -> float:
    """Return |gradient of the logit|^2 at one point, by central differences."""
    steps_ZZ = 1e-5 * torch.eye(len(z_Z), dtype=z_Z.dtype)
    with torch.no_grad():
        slopes_Z = (discriminator(z_Z + steps_ZZ) - discriminator(z_Z - steps_ZZ)) / 2e-5
    return float(slopes_Z.square().sum())


def test_r1_is_half_the_mean_squared_gradient_at_prior_samples_times_its_period() -> None:
    method, part = part_of(4, r1_weight=0.7, r1_every=2)
    plain, _ = part_of(4)
    squares = [squared_gradient(method.discriminator, z) for z in part.z_prior_BZ]
    kept = [square for square, w in zip(squares, part.weights_B, strict=True) if w]
    assert 0 < len(kept) < len(squares)  # masked rows have no prior sample
    expected = 0.7 / 2 * 2 * sum(kept) / len(kept)
    penalised, _ = method.discriminator_loss(encoded(method, part))
    without, _ = plain.discriminator_loss(encoded(plain, part))
    added = penalised - without
    assert float(added.detach()) == pytest.approx(expected, rel=1e-5)


def test_r1_reaches_the_weights_and_comes_once_in_its_period() -> None:
    gradients = []
    for step in range(7):
        sides = []
        for r1 in ({"r1_weight": 5.0, "r1_every": 3}, {}):
            method, part = part_of(step, **r1)
            method.discriminator_loss(encoded(method, part))[0].backward()
            found = [p.grad for p in method.discriminator.parameters() if p.grad is not None]
            sides.append(torch.cat([g.flatten() for g in found]))
        gradients.append(not torch.equal(*sides))
    assert gradients == [True, False, False, True, False, False, True]


def seen_by_discriminator(method: AdversarialMethod, part: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return the inputs of the discriminator in its own update and in the generator's."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    for network in (method.discriminator, method.frozen):
        network.register_forward_pre_hook(keep)
    code = encoded(method, part)
    method.discriminator_loss(code)
    method.generator_loss(code)
    return seen[0], seen[1]


def test_input_noise_has_its_deviation_and_is_the_same_for_any_split_of_the_rows() -> None:
    method, part = part_of(1, input_noise=0.3)
    both, codes = seen_by_discriminator(method, part)
    plain_both, plain_codes = seen_by_discriminator(*part_of(1))
    noise = (both - plain_both) / 0.3
    wanted = [part.draws.normal(f"noise on {of}", part.rows, 4) for of in SIDES]
    assert torch.allclose(noise, torch.cat(wanted))
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert not torch.allclose(*noise.chunk(2))
    # The generator has to fool the discriminator that saw these very codes.
    assert torch.equal(codes - plain_codes, (both - plain_both).chunk(2)[1])
    pieces = [seen_by_discriminator(method, piece)[1] for piece in part.split(7)]
    assert torch.allclose(torch.cat(pieces), codes)


SIDES = ("prior samples", "codes")


def encoder_gradients(method: AdversarialMethod) -> dict[str, Tensor]:
    """Return a dictionary that the next step fills: phase -> the encoder's gradient."""
    seen: dict[str, Tensor] = {}
    encoder = list(method.modules.encoder.parameters())
    for phase in ("reconstruction", "generator"):

        def keep(*_: object, phase: str = phase) -> None:
            grads = [p.grad.flatten() for p in encoder if p.grad is not None]
            seen[phase] = torch.cat(grads).clone()

        method.optimizers[phase].optimizer.register_step_pre_hook(keep)
    return seen


@pytest.mark.parametrize("micro_batch_size", [None, 7])
def test_the_generators_gradient_has_its_part_of_reconstructions(
    micro_batch_size: int | None,
) -> None:
    train = {"steps": 9, "global_batch_size": 24, "precision": "fp64"}
    train["micro_batch_size"] = micro_batch_size
    method = {"kind": "adversarial", "balance": "none", "gradient_ratio": 0.25}
    config = tiny_config(method=method, train=train)
    _, built, inputs = build(config, single_world())
    assert isinstance(built, AdversarialMethod)
    seen = encoder_gradients(built)
    for step in range(3):
        run_step(built, inputs, config, step)
        ratio = seen["generator"].norm() / seen["reconstruction"].norm()
        assert float(ratio) == pytest.approx(0.25, rel=1e-9)


def encoder_after(optimizer: dict[str, Any], **method: Any) -> Tensor:
    phases = {phase: optimizer for phase in ("reconstruction", "discriminator", "generator")}
    config = tiny_config(method={"kind": "adversarial", "balance": "none", **method}, phases=phases)
    networks, built, inputs = build(config, single_world())
    for step in range(4):
        run_step(built, inputs, config, step)
    return torch.cat([p.detach().flatten() for p in networks.encoder.parameters()])


def test_the_generators_weight_acts_under_sgd_and_cancels_under_adam() -> None:
    """As docs/configuration.md says: under Adam it is the learning rate that acts."""
    moved = {
        name: (encoder_after(kind, weight=100.0) - encoder_after(kind)).abs().max()
        for name, kind in (("sgd", SGD), ("adam", ADAM))
    }
    assert float(moved["sgd"]) > 1e-2
    assert float(moved["adam"]) < 1e-6
    slower = {**ADAM, "optimizer": {"kind": "adam", "lr": 2e-3, "eps": 1e-12}}
    assert float((encoder_after(slower) - encoder_after(ADAM)).abs().max()) > 1e-3
