"""The moving average of the autoencoder's weights: its formula, its place in a checkpoint."""

import torch
from helpers.ranks import single_world
from helpers.steps import build, run_step, tiny_config

from aae_dist.checkpoints.format import WeightAverage, weights_to_use
from aae_dist.training.state import TrainState


def parts():
    config = tiny_config(train={"steps": 9, "global_batch_size": 24, "precision": "fp64"})
    networks, method, inputs = build(config, single_world())
    average = WeightAverage(networks, 0.5)
    return networks, TrainState(networks, method.optimizers, average), method, inputs, config


def weight(networks):
    return next(networks.encoder.parameters()).detach().clone()


def test_it_is_the_weighted_sum_of_the_past() -> None:
    networks, state, method, inputs, config = parts()
    expected = weight(networks)
    for step in range(1, 9):
        run_step(method, inputs, config, step - 1)
        assert state.average is not None
        state.average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight(networks)
    got = weight(state.average.networks)
    assert torch.allclose(got, expected, atol=1e-12)
    assert not torch.equal(got, weight(networks))


def test_training_does_not_depend_on_it() -> None:
    networks, state, method, inputs, config = parts()
    twin, twin_method, twin_inputs = build(config, single_world())
    for step in range(4):
        run_step(method, inputs, config, step)
        state.average.update(step + 1)
        run_step(twin_method, twin_inputs, config, step)
    assert torch.equal(weight(networks), weight(twin))


def test_a_checkpoint_holds_it_and_the_weights_to_use_are_the_averaged_ones() -> None:
    networks, state, method, inputs, config = parts()
    run_step(method, inputs, config, 0)
    state.average.update(1)
    saved = {
        file: {k: v.clone() for k, v in group.items()} for file, group in state.tensors().items()
    }
    assert set(saved["ema"]) == {k for k in saved["model"] if not k.startswith("discriminator")}
    used = weights_to_use(saved)
    name = next(iter(saved["ema"]))
    assert torch.equal(used[name], saved["ema"][name])
    assert not torch.equal(used[name], saved["model"][name])
    assert any(key.startswith("discriminator") for key in used)
    other, again, *_ = parts()
    again.load(saved, state.metadata())
    assert torch.equal(weight(again.average.networks), weight(state.average.networks))
    assert torch.equal(weight(other), weight(networks))


def test_weights_from_elsewhere_start_a_new_average() -> None:
    networks, state, *_ = parts()
    model = {k: torch.full_like(v, 0.25) for k, v in state.tensors()["model"].items()}
    state.load_weights(model)
    assert float(weight(state.average.networks).unique()) == 0.25


def test_an_average_from_elsewhere_goes_on_and_keeps_what_it_holds() -> None:
    networks, state, method, inputs, config = parts()
    model = {k: torch.full_like(v, 0.25) for k, v in state.tensors()["model"].items()}
    ema = {k: torch.full_like(v, 0.75) for k, v in state.tensors()["ema"].items()}
    state.start_from({"model": model, "ema": ema})
    assert float(weight(networks).unique()) == 0.25
    assert float(weight(state.average.networks).unique()) == 0.75
    state.average.update(1)  # decay 0.5 at once: an early step of a new average would forget it
    assert float(weight(state.average.networks).unique()) == 0.5
    _, again, *_ = parts()
    again.load(state.tensors(), state.metadata())
    again.average.update(2)
    assert float(weight(again.average.networks).unique()) == 0.375


def test_weights_without_an_average_start_a_new_one() -> None:
    _, state, *_ = parts()
    model = {k: torch.full_like(v, 0.25) for k, v in state.tensors()["model"].items()}
    state.start_from({"model": model})
    assert float(weight(state.average.networks).unique()) == 0.25
    assert not state.average.is_inherited


def test_the_decay_is_reached_slowly() -> None:
    networks, *_ = parts()
    average = WeightAverage(networks, 0.999)
    with torch.no_grad():
        next(networks.encoder.parameters()).zero_()
    before = weight(average.networks)
    average.update(0)
    assert torch.allclose(weight(average.networks), before * 0.1)
