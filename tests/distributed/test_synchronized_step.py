"""What ranks exchange in a step, and what they decide together."""

from typing import Any

import pytest
import torch
from helpers.frozen import FROZEN
from helpers.measures import (
    all_reduced_bytes,
    buffers_to_broadcast,
    first_gradients,
    poisoned_run,
    steps_after_trials,
)
from helpers.ranks import run_ranks, single_world
from helpers.steps import MODELS

pytestmark = pytest.mark.distributed

FP32 = {"train": {"steps": 100, "global_batch_size": 24, "precision": "fp32"}}
MICRO = {"train": {"steps": 100, "global_batch_size": 24, "micro_batch_size": 4}}


COMPILED = {"train": {"steps": 100, "global_batch_size": 24, "precision": "fp32", "compile": True}}
SIZES = {
    "whole share": {},
    "micro-batches": MICRO,
    "conv": {"model": MODELS["conv"]},
    "resnet in micro-batches": {"model": MODELS["resnet"], **MICRO},
    "conv in micro-batches": {"model": MODELS["conv"], **MICRO},
    "compiled": COMPILED,
}
CHOICES = [pytest.param(tree, id=name) for name, tree in SIZES.items()]
SLOW = {"model": MODELS["conv"], **COMPILED}
CHOICES.append(pytest.param(SLOW, id="compiled conv", marks=pytest.mark.slow))


@pytest.mark.parametrize("tree", CHOICES)
def test_all_reduced_bytes_are_the_minimum(tree: dict[str, Any]) -> None:
    for counted, minimum in run_ranks(all_reduced_bytes, 2, tree):
        assert counted == minimum


def test_constant_buffers_are_not_broadcast_in_each_forward_pass() -> None:
    tree = {"model": {**MODELS["mlp"], **FROZEN}}
    assert run_ranks(buffers_to_broadcast, 2, tree) == [[False] * 3] * 2


def test_ranks_try_sizes_by_themselves() -> None:
    expected = steps_after_trials(single_world(), {})
    mean = torch.tensor(run_ranks(steps_after_trials, 2, {})).mean(0)
    assert mean.tolist() == pytest.approx(expected, abs=1e-6)


def test_first_gradients_agree_with_one_rank_in_fp32() -> None:
    expected = first_gradients(single_world(), FP32)
    for gradients in run_ranks(first_gradients, 2, FP32):
        for phase, gradient in gradients.items():
            scale = expected[phase].abs().max()
            assert (gradient - expected[phase]).abs().max() <= 1e-5 * scale


def test_all_ranks_skip_an_update_that_is_not_finite_on_one_of_them() -> None:
    results = run_ranks(poisoned_run, 2, {}, 2, 1)
    for skipped, in_a_row, unchanged, moments_kept, _ in results:
        assert skipped == {"reconstruction": 0, "discriminator": 1, "generator": 0}
        assert in_a_row["discriminator"] == 0
        assert unchanged
        assert moments_kept
    (*_, first), (*_, second) = results
    assert all(map(torch.equal, first, second))
    assert all(bool(torch.isfinite(network).all()) for network in first)
