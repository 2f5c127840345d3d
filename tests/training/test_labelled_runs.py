"""Whole runs that read labels: holes, the labelled set in checkpoints, scores."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import single_world
from helpers.reporters import Silent
from helpers.runs import TINY, final_tensors, metrics
from webdataset import TarWriter

import aae_dist
from aae_dist.config import load_config
from aae_dist.errors import ConfigError, DataError
from aae_dist.training import labelled
from aae_dist.training.folder import Outcome
from aae_dist.training.trainer import train

pytestmark = [pytest.mark.run, pytest.mark.timeout(240)]

MODEL = (
    "model={latent_dim: 12, encoder_widths: [24], decoder_widths: [24], discriminator_widths: [24]}"
)
PARTS = "{dims: 10, prior: {kind: categorical}}, {dims: 2, prior: {kind: gaussian}}"
PRODUCT = (MODEL, f"prior={{kind: product, parts: [{PARTS}]}}")
GIVEN = (MODEL, f"prior={{kind: product, parts: [{PARTS.replace('}}', '}, given: label}', 1)}]}}")


def go(storage: Path, name: str, *items: str, files: tuple[Path, ...] = ()) -> Outcome:
    torch.set_num_threads(1)
    place = (f"run.storage={storage}", f"run.name={name}", "launch.kind=local")
    config = load_config(list(files), [*place, *TINY, *items]).config
    return train(config, single_world(), Silent(), "launch")


def write(folder: Path, labels: list[int | None]) -> Path:
    """Write random images of 28 x 28 with these labels, None for none."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    with TarWriter(str(folder / "000.tar")) as writer:
        for number, label in enumerate(labels):
            buffer = io.BytesIO()
            np.save(buffer, draw.integers(0, 256, (1, 28, 28), dtype=np.uint8))
            sample = {"__key__": f"{number:05d}", "npy": buffer.getvalue()}
            writer.write(sample | ({} if label is None else {"cls": str(label).encode()}))
    return folder


def digits(folder: Path, num: int) -> Path:
    """Write a few of the shipped digits with their labels."""
    from aae_dist.config.sections.run import Data
    from aae_dist.data import open_dataset

    data = open_dataset("builtin://digits/train", Data(train="builtin://digits/train"))
    images, labels = data.read(np.arange(num))
    folder.mkdir()
    with TarWriter(str(folder / "000.tar")) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            np.save(buffer, image.numpy())
            sample = {"__key__": f"{number:05d}", "npy": buffer.getvalue()}
            writer.write(sample | {"cls": str(int(label)).encode()})
    return folder


NPY = "data.image_keys=[npy, png]"


def test_the_labelled_set_stays_with_the_run_and_a_resumed_run_ends_bit_equal(
    tmp_path: Path,
) -> None:
    shards = digits(tmp_path / "labelled", 40)
    items = (*PRODUCT, "method.kind=semi_supervised", f"data.labelled={shards}", NPY)
    go(tmp_path, "whole", *items, "train.steps=30")
    go(tmp_path, "broken", *items, "train.steps=12")
    shutil.rmtree(shards)
    ended = go(tmp_path, "broken", *items, "train.steps=30")
    # The rates fall over the planned steps, which differ: compare two resumed runs instead.
    whole, broken = (final_tensors(str(tmp_path / n), 30) for n in ("whole", "broken"))
    assert torch.equal(whole["labelled.safetensors/images"], broken["labelled.safetensors/images"])
    assert broken["labelled.safetensors/labels"].shape == (40,)
    assert 0.0 < ended.metrics["classification/error"] < 1.0
    assert 0.0 < metrics(str(tmp_path / "broken"))[-1]["loss/classification"] < 3.0
    run = aae_dist.load_run(str(tmp_path / "whole"))
    assert run.sample(4, labels=[0, 1, 2, 3]).shape == (4, 1, 28, 28)


def test_a_labelled_set_that_cannot_be_held_or_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (*PRODUCT, "method.kind=semi_supervised", NPY, "train.steps=2")
    few = write(tmp_path / "few", [3, 4, None, 5])
    with pytest.raises(DataError, match=r"'00002' has no label, and 1 of 4 have none from 0 to 9"):
        go(tmp_path, "a", *items, f"data.labelled={few}")
    other = write(tmp_path / "other", [3, 17])
    with pytest.raises(DataError, match="'00001' has label 17"):
        go(tmp_path, "b", *items, f"data.labelled={other}")
    monkeypatch.setattr(labelled, "MAX_BYTES", 3 * 784)
    with pytest.raises(ConfigError, match="4 samples are 0 MiB, and every rank holds them all"):
        go(tmp_path, "c", *items, f"data.labelled={few}")


def test_a_sample_without_the_label_that_its_code_holds_is_a_hole(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [n % 10 for n in range(60)] + [None, 12] + [1] * 34)
    items = (*GIVEN, NPY, f"data.train={data}", f"data.validation={data}", "train.epochs=1")
    outcome = go(tmp_path, "run", *items, "data.max_bad_fraction=0.1")
    assert outcome.metrics["samples_seen"] == 94
    assert outcome.metrics["data/bad_samples"] == 2
    assert outcome.metrics["data/bad_validation_samples"] == 2
    listed = (tmp_path / "run" / "bad_samples.jsonl").read_text()
    assert "no label; this run reads labels from 0 to 9" in listed
    assert "label 12; this run reads labels from 0 to 9" in listed
    run = aae_dist.load_run(str(tmp_path / "run"))
    images = torch.zeros(3, 1, 28, 28)
    with pytest.raises(ValueError, match="hold the label; give labels, from 0 to 9"):
        run.encode(images)
    codes = run.encode(images, labels=[4, 0, 9])
    assert codes[:, :10].argmax(1).tolist() == [4, 0, 9]
    assert torch.equal(codes[0, 10:], codes[2, 10:])  # the style is the image's alone
    assert run.reconstruct(images, labels=[4, 0, 9]).shape == images.shape
    with pytest.raises(ConfigError, match="hold the label, which no network computes"):
        run.as_modules()


METHODS = Path(__file__).parents[2] / "configs" / "method"


def test_settings_of_a_public_reproduction_raise_alarms_at_the_first_evaluation(
    tmp_path: Path,
) -> None:
    shards = digits(tmp_path / "labelled", 100)
    items = (f"data.labelled={shards}", NPY, "model.latent_dim=20", "train.steps=60")
    go(tmp_path, "run", *items, files=(METHODS / "reproduction.yaml",))
    alarms = json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"]
    assert "discriminator_dead" in alarms, alarms


@pytest.mark.usefixtures("pictures")
def test_a_reduced_run_has_a_map_whose_neighbours_are_scored(tmp_path: Path) -> None:
    shards = digits(tmp_path / "labelled", 40)
    items = (f"data.labelled={shards}", NPY, "model.latent_dim=12", "train.steps=20")
    outcome = go(tmp_path, "run", *items, files=(METHODS / "reduction.yaml",))
    assert 0.0 < outcome.metrics["reduction/neighbour_error"] < 0.9
    assert (tmp_path / "run" / "pictures" / "clusters.png").exists()
    run = aae_dist.load_run(str(tmp_path / "run"))
    assert run.sample(4, labels=[0, 1, 2, 3]).shape == (4, 1, 28, 28)


def test_a_guided_run_tells_how_many_codes_are_in_their_mode(tmp_path: Path) -> None:
    items = ("method.kind=label_guided", "prior.kind=mixture", "train.steps=10")
    outcome = go(tmp_path, "run", *items)
    assert 0.0 < outcome.metrics["classification/error"] <= 1.0
    assert 0.0 <= outcome.metrics["discriminator/accuracy_codes"] <= 1.0
