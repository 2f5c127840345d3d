"""Priors that are sets of vectors, and vectors as data: whole runs in this process."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from helpers.runs import TINY, final_tensors
from webdataset import TarWriter

import aae_dist
from aae_dist.config import load_config
from aae_dist.errors import ConfigError
from aae_dist.training.outcome import Outcome
from aae_dist.training.train import train

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]


class Silent:
    def report(self, metrics: object) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def stopped_as(self) -> str:
        return "interrupted"

    def save_requested(self) -> bool:
        return False

    def line(self, text: str) -> None:
        pass


def go(storage: Path, name: str, *items: str) -> Outcome:
    torch.set_num_threads(1)
    place = (f"run.storage={storage}", f"run.name={name}", "launch.kind=local", "train.steps=4")
    config = load_config([], [*place, *TINY, *items]).config
    return train(config, single_world(), Silent(), "launch")


def write_vectors(folder: Path, vectors: np.ndarray) -> Path:
    folder.mkdir()
    with TarWriter(str(folder / "000.tar")) as writer:
        for number, vector in enumerate(vectors):
            buffer = io.BytesIO()
            np.save(buffer, vector)
            writer.write({"__key__": f"{number:05d}", "npy": buffer.getvalue()})
    return folder


def test_codes_of_another_run_are_a_prior_that_stays_with_the_run(tmp_path: Path) -> None:
    go(tmp_path, "first", "data.validation=null")
    prior = (f"prior={{kind: run, uri: '{tmp_path}/first', max_vectors: 300}}",)
    go(tmp_path, "second", *prior, "data.validation=null")
    first = aae_dist.load_run(str(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "gone")
    second = aae_dist.load_run(str(tmp_path / "second"))
    vectors = final_tensors(str(tmp_path / "second"), 4)["prior.safetensors/vectors"]
    assert vectors.shape == (300, 2)
    z = second.prior.sample(50, torch.Generator().manual_seed(0))
    assert all((row == vectors).all(1).any() for row in z)
    # They are the first run's codes of its own data.
    dataset = first.open(first.config.data.train)
    codes = first.encode(dataset.read(np.arange(300) * len(dataset) // 300)[0])
    assert torch.allclose(vectors, codes, atol=1e-6)
    go(tmp_path, "second", *prior, "data.validation=null", "train.steps=6")
    again = final_tensors(str(tmp_path / "second"), 6)["prior.safetensors/vectors"]
    assert torch.equal(again, vectors)


def test_vectors_train_evaluate_and_serve_as_a_prior(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    data = write_vectors(tmp_path / "data", draw.normal(3, 2, (200, 5)).astype(np.float32))
    prior = write_vectors(tmp_path / "prior", draw.normal(0, 1, (90, 2)).astype(np.float32))
    items = (
        f"data.train={data}",
        f"data.validation={data}",
        "data.image_keys=[npy]",
        "model.decoder_output=linear",
        f"prior={{kind: data, vectors: '{prior}'}}",
    )
    outcome = go(tmp_path, "run", *items)
    assert outcome.state == "finished"
    assert outcome.metrics["reconstruction/mse"] > 0.1
    run = aae_dist.load_run(str(tmp_path / "run"))
    x = torch.randn(3, 1, 1, 5)
    assert run.decode(run.prior.sample(3, torch.Generator())).shape == x.shape
    with pytest.raises(ConfigError, match=r"prior.vectors: needs vectors of model.latent_dim=2"):
        go(tmp_path, "other", *items[:-1], f"prior={{kind: data, vectors: '{data}'}}")
