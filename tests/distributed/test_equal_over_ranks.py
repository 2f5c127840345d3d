"""A run is the same for any number of ranks, up to the order of floating-point sums."""

from typing import Any

import pytest
import torch
from helpers.frozen import FROZEN
from helpers.ranks import run_ranks, single_world
from helpers.steps import MODELS, train_steps

from aae_dist.config.run_config import COUNTS

pytestmark = pytest.mark.distributed

ADVERSARIAL: dict[str, Any] = {}
VARIATIONAL = {"method": {"kind": "variational"}, "posterior": {"kind": "gaussian"}}
GAUSSIAN_POSTERIOR = {"posterior": {"kind": "gaussian"}, "prior": {"kind": "mixture"}}
CLIPPED_SGD = {
    "method": {"kind": "adversarial", "balance": "none"},
    "phases": {
        phase: {"optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.5}, "clip_norm": 0.5}
        for phase in ("reconstruction", "discriminator", "generator")
    },
}
MMD = {"method": {"kind": "mmd", "weight": 10.0}, "posterior": {"kind": "gaussian"}}
SLICED = {
    "method": {"kind": "sliced_wasserstein", "weight": 10.0, "num_projections": 16},
    "prior": {"kind": "uniform"},
}
CHARACTERISTIC = {
    "method": {"kind": "characteristic", "weight": 10.0, "num_projections": 16},
    "prior": {"kind": "mixture"},
}
SIGREG = {"method": {"kind": "characteristic", "weight": 10.0, "num_projections": 16}}
REGULARIZED = {
    "method": {
        "kind": "adversarial",
        "balance": "none",
        "adversary": "hinge",
        "r1_weight": 0.5,
        "r1_every": 4,
        "input_noise": 0.1,
        "gradient_ratio": 0.5,
    },
    "model": {**MODELS["mlp"], "discriminator_spectral_norm": True},
    "posterior": {"kind": "universal", "noise_dim": 3},
}
CONV = {"model": MODELS["conv"], "posterior": {"kind": "universal"}}
RESNET_ADAMW = {
    "model": MODELS["resnet"],
    "posterior": {"kind": "categorical"},
    "prior": {"kind": "categorical"},
    "phases": {"reconstruction": {"optimizer": {"kind": "adamw", "weight_decay": 0.1}}},
}
FROZEN_TRUNK = {"model": {**MODELS["mlp"], **FROZEN}}
DENOISING = {"method": {"kind": "adversarial", "image_noise": 0.3}}
UNEVEN = {"data": {"train": "x", "lanes": 8}}


def mean_losses(per_rank: list[Any]) -> list[dict[str, float]]:
    steps = zip(*(losses for losses, _ in per_rank), strict=True)
    return [{k: sum(s[k] for s in step) / len(step) for k in step[0]} for step in steps]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("tree", [ADVERSARIAL, UNEVEN], ids=["24 lanes", "8 lanes"])
def test_losses_and_networks_agree_with_one_rank_over_100_steps(
    size: int, tree: dict[str, Any]
) -> None:
    expected, networks = train_steps(single_world(), tree, 100)
    per_rank = run_ranks(train_steps, size, tree, 100)
    for got, wanted in zip(mean_losses(per_rank), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-9)
    for network, *others in zip(networks, *(flat for _, flat in per_rank), strict=True):
        assert torch.allclose(others[0], network, atol=1e-9)
        assert all(torch.equal(others[0], other) for other in others)


@pytest.mark.parametrize(
    "tree",
    [
        *(VARIATIONAL, GAUSSIAN_POSTERIOR, CLIPPED_SGD, REGULARIZED),
        *(CONV, RESNET_ADAMW, FROZEN_TRUNK, DENOISING),
    ],
    ids=[
        *("variational", "gaussian", "sgd", "regularized"),
        *("conv", "resnet adamw", "frozen trunk", "denoising"),
    ],
)
def test_every_method_posterior_and_optimizer_agrees(tree: dict[str, Any]) -> None:
    expected, _ = train_steps(single_world(), tree, 30)
    for got, wanted in zip(mean_losses(run_ranks(train_steps, 3, tree, 30)), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    "tree",
    [MMD, SLICED, CHARACTERISTIC, SIGREG],
    ids=["mmd", "sliced_wasserstein", "characteristic", "characteristic gaussian"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_distances_over_the_global_batch_agree(tree: dict[str, Any], size: int) -> None:
    expected, networks = train_steps(single_world(), tree, 30)
    per_rank = run_ranks(train_steps, size, tree, 30)
    for got, wanted in zip(mean_losses(per_rank), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-9)
    for network, *others in zip(networks, *(flat for _, flat in per_rank), strict=True):
        assert torch.allclose(others[0], network, atol=1e-9)
        assert all(torch.equal(others[0], other) for other in others)


@pytest.mark.parametrize("tree", [MMD, SLICED, CHARACTERISTIC, REGULARIZED, CONV])
def test_micro_batches_change_nothing_for_any_method(tree: dict[str, Any]) -> None:
    expected, _ = train_steps(single_world(), tree, 20)
    train = {"steps": 100, "global_batch_size": 24, "precision": "fp64", "micro_batch_size": 5}
    (got, _) = train_steps(single_world(), {**tree, "train": train}, 20)
    for got_step, wanted in zip(got, expected, strict=True):
        assert got_step == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kind", ["conv", "resnet"])
@pytest.mark.parametrize("shape", [(2, 9), (1, 5, 6, 7)], ids=["signals", "volumes"])
def test_signals_and_volumes_agree(kind: str, shape: tuple[int, ...]) -> None:
    tree = {"model": MODELS[kind]}
    expected, networks = train_steps(single_world(), tree, 12, None, shape)
    per_rank = run_ranks(train_steps, 2, tree, 12, None, shape)
    for got, wanted in zip(mean_losses(per_rank), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-9)
    for network, *others in zip(networks, *(flat for _, flat in per_rank), strict=True):
        assert torch.allclose(others[0], network, atol=1e-9)
        assert torch.equal(others[0], others[1])


LINEAR = {"model": {**MODELS["mlp"], "decoder_output": "linear"}, "posterior": {"kind": "gaussian"}}
OF_CELLS: dict[str, dict[str, Any]] = {
    loss: {**LINEAR, "method": {"kind": "variational", "reconstruction_loss": loss}}
    for loss in COUNTS
}
TABLE = {
    **LINEAR,
    "data": {"train": "x", "columns": {"real": 2, "counts": 3, "categories": (3, 2)}},
    "method": {"kind": "adversarial", "reconstruction_loss": "mixed"},
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("tree", [*OF_CELLS.values(), TABLE], ids=[*OF_CELLS, "mixed"])
def test_counts_and_tables_agree(tree: dict[str, Any], size: int) -> None:
    shape = (1, 1, 10)
    expected, networks = train_steps(single_world(), tree, 20, None, shape)
    per_rank = run_ranks(train_steps, size, tree, 20, None, shape)
    for got, wanted in zip(mean_losses(per_rank), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-9)
    for network, *others in zip(networks, *(flat for _, flat in per_rank), strict=True):
        assert torch.allclose(others[0], network, atol=1e-9)
        assert all(torch.equal(others[0], other) for other in others)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 8])
def test_micro_batches_change_nothing(micro_batch_size: int) -> None:
    expected, _ = train_steps(single_world(), GAUSSIAN_POSTERIOR, 30)
    tree = {**GAUSSIAN_POSTERIOR, "train": {"micro_batch_size": micro_batch_size}}
    tree["train"] |= {"steps": 100, "global_batch_size": 24, "precision": "fp64"}
    for size in (1, 2):
        got = mean_losses(run_ranks(train_steps, size, tree, 30))
        for got_step, wanted in zip(got, expected, strict=True):
            assert got_step == pytest.approx(wanted, abs=1e-9)
