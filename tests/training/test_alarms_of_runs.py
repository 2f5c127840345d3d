"""Poor runs raise an alarm within their first tenth, healthy ones none; data are made by a seed."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from numpy.typing import NDArray

from aae_dist.cli.main import main
from aae_dist.config import load_config
from aae_dist.training.trainer import train

pytestmark = [pytest.mark.run, pytest.mark.timeout(300)]

WIDTHS = "encoder_widths: [128, 128], decoder_widths: [128, 128], discriminator_widths: [128, 128]"
FORMER = (  # the defaults of before method.balance, of which all runs here end poorly
    "phases.reconstruction.optimizer.lr=2e-3",
    "phases.discriminator.optimizer={kind: adam, lr: 1e-3, betas: [0.5, 0.999]}",
    "phases.generator.optimizer={kind: adam, lr: 1e-3, betas: [0.5, 0.999], eps: 1e-3}",
    "method.balance=none",
    "data.standardize=false",
)
STEPS, TENTH, EVERY = 1500, 150, 25
SETS = ("log_counts", "digits")


def log_counts(num: int = 1200, genes: int = 300, types: int = 5) -> NDArray[np.float32]:
    """Log counts as of single cells: negative binomial, unequal library sizes."""
    draw = np.random.default_rng(0)
    mean = np.exp(draw.normal(-1, 1.2, (1, genes)) + draw.normal(0, 0.9, (types, genes)))
    rate = mean[draw.integers(0, types, num)] * draw.lognormal(0, 0.4, num)[:, None]
    counts = draw.negative_binomial(2.0, 2.0 / (2.0 + rate))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.log1p(share * 1e4).astype(np.float32)


class StopAfterTenth:
    """The launcher's callbacks: asks to stop once a tenth of the run is reported."""

    def __init__(self) -> None:
        self._num_reports = 0

    def report(self, metrics: Mapping[str, float]) -> None:
        self._num_reports += 1

    def stop_requested(self) -> bool:
        return self._num_reports >= TENTH // EVERY

    def stopped_as(self) -> str:
        return "interrupted"

    def save_requested(self) -> bool:
        return False

    def line(self, text: str) -> None:
        pass


def shards_of(tmp_path: Path, data: str) -> tuple[str, ...]:
    """Return the keys of a data set and of networks for it."""
    if data == "digits":
        shards = "builtin://digits"
        more = f"model={{latent_dim: 32, {WIDTHS}}}"
        return (f"data={{train: {shards}/train, validation: {shards}/validation}}", more)
    np.save(tmp_path / "rows.npy", log_counts())
    packed = tmp_path / "packed"
    assert (
        main(["data", "pack", "npy", "--root", f"{tmp_path}/rows.npy", "--out", f"{packed}"]) == 0
    )
    return (
        f"data={{train: {packed}/train, validation: {packed}/validation, image_keys: [npy]}}",
        f"model={{latent_dim: 10, decoder_output: linear, {WIDTHS}}}",
    )


def first_tenth(tmp_path: Path, data: str, *items: str) -> dict[str, float]:
    """Train on a set until a tenth of the run is done; return the alarms raised and their steps."""
    torch.set_num_threads(1)
    overrides = (
        *shards_of(tmp_path, data),
        f"train={{steps: {STEPS}, global_batch_size: 128, log_every_steps: {EVERY}}}",
        f"run={{name: run, storage: {tmp_path}}}",
        *("launch.kind=local", "wandb.mode=disabled"),
    )
    config = load_config([], [*overrides, *items]).config
    outcome = train(config, single_world(), StopAfterTenth(), "launch")
    assert outcome.step == TENTH
    return json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"]


@pytest.mark.parametrize(
    ("data", "posterior", "wanted"),
    [
        ("log_counts", "deterministic", {"unbalanced", "off_prior", "lagging"}),
        ("log_counts", "gaussian", {"unbalanced", "off_prior", "lagging"}),
        ("digits", "deterministic", {"unbalanced", "off_prior"}),
    ],
)
def test_a_poor_run_of_the_former_defaults_raises_an_alarm_within_its_first_tenth(
    tmp_path: Path, data: str, posterior: str, wanted: set[str]
) -> None:
    alarms = first_tenth(tmp_path, data, *FORMER, f"posterior.kind={posterior}")
    assert wanted <= set(alarms)


@pytest.mark.parametrize("data", SETS)
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, data: str) -> None:
    assert first_tenth(tmp_path, data, "method={kind: sliced_wasserstein, weight: 1000}") == {}


@pytest.mark.parametrize("data", SETS)
def test_a_balanced_run_raises_no_alarm(tmp_path: Path, data: str) -> None:
    assert first_tenth(tmp_path, data, "posterior.kind=gaussian") == {}
