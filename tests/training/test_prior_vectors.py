"""Priors that are sets of vectors, and vectors as data: whole runs in this process."""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from helpers.reporters import Silent
from helpers.runs import TINY, final_tensors
from webdataset import TarWriter

import aae_dist
from aae_dist.config import load_config
from aae_dist.config.sections.model import DataPrior
from aae_dist.errors import ConfigError, DataError
from aae_dist.training.data import prior_vectors
from aae_dist.training.folder import Outcome
from aae_dist.training.trainer import train
from aae_dist.utils.arrays import stratified
from aae_dist.utils.text import Advance

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]


def go(storage: Path, name: str, *items: str) -> Outcome:
    torch.set_num_threads(1)
    place = (f"run.storage={storage}", f"run.name={name}", "launch.kind=local", "train.steps=4")
    config = load_config([], [*place, *TINY, *items]).config
    return train(config, single_world(), Silent(), "launch")


def write_vectors(folder: Path, vectors: np.ndarray, bad: Collection[int] = ()) -> Path:
    """Write vectors; those whose numbers are in `bad` hold none."""
    folder.mkdir()
    with TarWriter(str(folder / "000.tar")) as writer:
        for number, vector in enumerate(vectors):
            buffer = io.BytesIO()
            np.save(buffer, vector)
            data = b"no array" if number in bad else buffer.getvalue()
            writer.write({"__key__": f"{number:05d}", "npy": data})
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
    codes = first.encode(dataset.read(stratified(300, len(dataset)))[0])
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


def test_bad_vectors_are_left_out_up_to_the_part_that_training_bears(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(0, 1, (200, 2)).astype(np.float32)
    few = write_vectors(tmp_path / "few", numbers, bad=(3, 150))
    many = write_vectors(tmp_path / "many", numbers, bad=(3, 9, 150))
    config = load_config([], ["run.name=x", "train.steps=4", *TINY]).config

    told: list[tuple[str, int]] = []

    @contextmanager
    def show(label: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda count: told.append((f"{label}: {total} {unit}", count))

    def vectors(folder: Path) -> torch.Tensor:
        prior = DataPrior(vectors=str(folder))
        prior_config = config.model_copy(update={"prior": prior})
        found = prior_vectors(prior_config, None, single_world(), show)
        assert found is not None
        return found

    assert torch.equal(vectors(few), torch.from_numpy(np.delete(numbers, [3, 150], 0)))
    # Signs of life for the watchdog: codes of a large run take longer than a section may.
    assert told[-1] == ("reading the prior: 200 vectors", 200)
    with pytest.raises(DataError, match=r"many/000.tar, sample '00003'"):
        vectors(many)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    return write_vectors(
        tmp_path_factory.mktemp("data") / "five", draw.normal(3, 2, (200, 5)).astype(np.float32)
    )


LINEAR = "model.decoder_output=linear"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([LINEAR, "data.augment.flip=true"], "data.augment: is for images.*vectors of 5 numbers"),
        ([LINEAR, "data.augment.contrast=0.1"], "data.augment: is for images"),
        ([], r"model.decoder_output: sigmoid.*data.train has numbers from -.* to .*linear"),
        (["method.reconstruction_loss=bce"], "numbers from -"),
    ],
)
def test_settings_that_do_not_fit_vectors_are_refused_before_training(
    five: Path, tmp_path: Path, items: list[str], reason: str
) -> None:
    data = (f"data.train={five}", "data.validation=null", "data.image_keys=[npy]")
    with pytest.raises(ConfigError, match=reason):
        go(tmp_path, "run", *data, *items)


def test_colours_of_unbounded_images_are_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(0, 1, (60, 3, 4, 4)).astype(np.float32)
    data = (f"data.train={write_vectors(tmp_path / 'data', images)}", "data.validation=null")
    items = (*data, "data.image_keys=[npy]", LINEAR)
    with pytest.raises(ConfigError, match="data.augment.*clip"):
        go(tmp_path, "run", *items, "data.augment.brightness=0.2")
    assert go(tmp_path, "run", *items, "data.augment.flip=true").state == "finished"


def test_mmd_refuses_a_prior_without_width(tmp_path: Path) -> None:
    point = write_vectors(tmp_path / "point", np.ones((50, 2), np.float32))
    with pytest.raises(ConfigError, match="all samples of this prior are equal"):
        go(tmp_path, "run", f"prior={{kind: data, vectors: '{point}'}}", "method.kind=mmd")
