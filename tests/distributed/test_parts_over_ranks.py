"""Codes in parts are the same for any number of ranks."""

from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks, single_world
from helpers.steps import MODELS, train_steps

pytestmark = pytest.mark.distributed

PARTS: dict[str, Any] = {
    "model": {**MODELS["mlp"], "latent_dim": 6},
    "posterior": {"kind": "gaussian"},
    "prior": {
        "kind": "product",
        "parts": (
            {"dims": 3, "prior": {"kind": "categorical"}},
            {"dims": 3, "prior": {"kind": "gaussian"}},
        ),
    },
}
MMD = {**PARTS, "method": {"kind": "mmd", "weight": 10.0}}
GIVEN = {
    **PARTS,
    "prior": {
        "kind": "product",
        "parts": (
            {"dims": 3, "prior": {"kind": "categorical"}, "given": "label"},
            {"dims": 3, "prior": {"kind": "gaussian"}},
        ),
    },
}
GIVEN_MMD = {**GIVEN, "method": {"kind": "mmd", "weight": 10.0}}
TYPE_AND_BATCH = {
    **GIVEN,
    "method": {"kind": "characteristic", "weight": 10.0},
    "model": {**MODELS["mlp"], "latent_dim": 8},
    "prior": {
        "kind": "product",
        "parts": (
            *GIVEN["prior"]["parts"],
            {"dims": 2, "prior": {"kind": "categorical"}, "given": "label"},
        ),
    },
}
GUIDED = {"method": {"kind": "label_guided"}, "prior": {"kind": "mixture", "num_modes": 3}}
LABELLED = {
    **PARTS,
    "method": {"kind": "semi_supervised", "image_noise": 0.1},
    "data": {"train": "x", "labelled": "y"},
}
REDUCED = {
    **LABELLED,
    "model": {**PARTS["model"], "cluster_heads": {}},
    "method": {"kind": "semi_supervised", "smoothness": 0.5, "smoothness_radius": 0.7},
}
GIVEN_VARIATIONAL = {**GIVEN, "method": {"kind": "variational"}}
METHODS = {
    "adversarial": PARTS,
    "mmd": MMD,
    "given": GIVEN,
    "given mmd": GIVEN_MMD,
    "given variational": GIVEN_VARIATIONAL,
    "type and batch given": TYPE_AND_BATCH,
    "label_guided": GUIDED,
    "semi_supervised": LABELLED,
    "reduction": REDUCED,
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_one_rank_and_several_agree(name: str, size: int) -> None:
    tree = METHODS[name]
    expected, networks = train_steps(single_world(), tree, 20)
    per_rank = run_ranks(train_steps, size, tree, 20)
    for step, wanted in enumerate(expected):
        got = {k: sum(losses[step][k] for losses, _ in per_rank) / size for k in wanted}
        assert got == pytest.approx(wanted, abs=1e-12)
    for network, *others in zip(networks, *(flat for _, flat in per_rank), strict=True):
        assert torch.allclose(others[0], network, rtol=0, atol=1e-12)
        assert all(torch.equal(others[0], other) for other in others)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_nothing(name: str) -> None:
    expected, _ = train_steps(single_world(), METHODS[name], 8)
    train = {"steps": 100, "global_batch_size": 24, "precision": "fp64", "micro_batch_size": 5}
    (got, _) = train_steps(single_world(), {**METHODS[name], "train": train}, 8)
    for got_step, wanted in zip(got, expected, strict=True):
        assert got_step == pytest.approx(wanted, abs=1e-12)
