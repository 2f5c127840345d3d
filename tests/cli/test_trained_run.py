"""The verbs on a run that was really trained, from the command line, in this process's world."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import VALIDATION

from aae_dist.cli import main

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = [
    "launch.kind=local",
    "wandb.mode=disabled",
    "train.steps=3",
    VALIDATION,
    "train.evaluate_every_steps=null",
    "model={encoder_widths: [8], decoder_widths: [8], discriminator_widths: [8]}",
]

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]


def train(storage, *more):
    command = [sys.executable, "-m", "aae_dist", "train", str(QUICKSTART), *SMALL, *more]
    return subprocess.run(
        [*command, f"run.storage={storage}"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def trained(storage):
    return train(storage)


def test_training_ends_with_a_table_and_the_places_of_everything(trained, storage):
    assert trained.returncode == 0, trained.stderr
    assert "prior_match/c2st" in trained.stdout
    assert f"Run folder: {storage}/quickstart" in trained.stdout
    assert list((storage / "quickstart" / "pictures").glob("*.png"))


def test_a_run_says_how_many_threads_it_uses(trained):
    assert "Threads: 1 per rank (launch.cpus_per_worker)" in trained.stdout


def test_the_same_command_again_says_that_the_run_has_finished(trained, storage):
    again = train(storage)
    assert again.returncode == 0, again.stderr
    assert "already finished at step 3" in again.stdout


@pytest.mark.slow
def test_a_latent_size_that_the_run_was_not_trained_with_exits_2(trained, storage):
    other = train(storage, "model.latent_dim=4")
    assert other.returncode == 2
    assert "model.latent_dim" in other.stderr
    assert "Traceback" not in other.stderr


def test_samples_of_one_seed_are_equal(trained, storage, tmp_path, capsys):
    run = str(storage / "quickstart")
    arrays = []
    for name, seed in [("a", "1"), ("b", "1"), ("c", "2")]:
        out = tmp_path / "new" / f"{name}.npy"
        assert main(["sample", run, "--num", "5", "--out", str(out), "--seed", seed]) == 0
        arrays.append(np.load(out))
    assert "5 images of step 3" in capsys.readouterr().out
    assert arrays[0].shape == (5, 1, 28, 28)
    assert arrays[0].min() >= 0.0
    assert arrays[0].max() <= 1.0
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_evaluate_prints_the_metrics_of_the_end_of_training(trained, storage, capsys):
    assert main(["evaluate", str(storage / "quickstart"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    summary = json.loads((storage / "quickstart" / "summary.json").read_text())
    assert metrics["step"] == 3
    for name in ("reconstruction/mse", "prior_match/num_samples"):
        assert metrics[name] == pytest.approx(summary["metrics"][name])
