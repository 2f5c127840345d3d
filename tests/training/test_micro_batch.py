"""Micro-batches that fit the memory: the search, on the CPU, with networks that run out of it."""

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import SHAPE, build, tiny_config

from aae_dist.config import load_config
from aae_dist.errors import LaunchError
from aae_dist.training.setup import Trial, largest_that_fits, measure


@pytest.mark.parametrize(
    ("share", "limit", "found"), [(64, 64, 64), (64, 63, 32), (48, 5, 3), (7, 1, 1), (1, 1, 1)]
)
def test_the_share_is_halved_until_it_fits(share, limit, found):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    assert largest_that_fits(share, fits) == found
    assert tried == sorted(tried, reverse=True)
    assert len(set(tried)) == len(tried)


def test_not_even_one_sample():
    with pytest.raises(LaunchError, match="not even one sample fits"):
        largest_that_fits(8, lambda size: False)


def trial(prior=None, **train):
    model = {"discriminator_spectral_norm": True}
    config = tiny_config(model=model, train=train, **({"prior": prior} if prior else {}))
    networks, method, inputs = build(config, single_world())
    return networks, Trial(method.modules, (12, *SHAPE), inputs.dtype)


def test_a_trial_leaves_no_trace():
    networks, fits = trial()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in networks.named().values()]
    assert fits(12)
    for module, state in zip(networks.named().values(), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())


def test_a_code_that_holds_the_label_is_tried_too():
    of_label = {"dims": 3, "prior": {"kind": "categorical"}, "given": "label"}
    assert trial({"kind": "product", "parts": (of_label, {"dims": 1})})[1](12)


def test_networks_that_run_out_of_memory_get_smaller_parts(monkeypatch):
    networks, fits = trial()
    forward = networks.decoder.forward

    def limited(z_BZ):
        if len(z_BZ) > 5:
            raise torch.OutOfMemoryError
        return forward(z_BZ)

    monkeypatch.setattr(networks.decoder, "forward", limited)
    assert measure(12, fits, single_world()) == 3


def test_what_is_measured_is_what_trains():
    networks, fits = trial(precision="bf16")
    seen = []
    layer = networks.decoder.layers[0]
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    assert fits(12)
    assert seen == [torch.bfloat16]


def test_pixels_that_do_not_fit_are_no_crash(monkeypatch):
    _, fits = trial()
    monkeypatch.setattr(torch, "zeros", out_of_memory)
    with pytest.raises(LaunchError, match="not even one sample fits"):
        largest_that_fits(12, fits)


def out_of_memory(*arguments, **more):
    raise torch.OutOfMemoryError


def test_the_word_and_null_are_both_accepted():
    base = ["run.name=a", "data.train=x.tar", "train.steps=5"]
    for text, value in (("auto", "auto"), ("null", None), ("4", 4)):
        config = load_config([], [*base, f"train.micro_batch_size={text}"]).config
        assert config.train.micro_batch_size == value
