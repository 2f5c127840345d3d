"""Verbs on runs whose code has a class part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trained import save_run

import aae_dist
from aae_dist.cli.main import main
from aae_dist.errors import ConfigError
from aae_dist.evaluation.classes import style_swaps
from aae_dist.inference.images import InterpolationOptions, class_walks, classes_of_names, codes_of
from aae_dist.priors import CategoricalPrior, Part

PART = Part(slice(1, 4), CategoricalPrior(3))
CLASSES: dict[str, Any] = {"dims": 10, "prior": {"kind": "categorical"}}
STYLE: dict[str, Any] = {"dims": 2, "prior": {"kind": "gaussian"}}


def save(folder: Path, *parts: dict[str, Any], **more: Any) -> str:
    prior = {"kind": "product", "parts": list(parts)}
    save_run(folder, prior=prior, model={"latent_dim": 12}, **more)
    return str(folder)


def test_a_style_swap_changes_the_class_alone() -> None:
    styles = torch.randn(5, 6)
    codes = style_swaps(styles, PART)
    assert codes.shape == (3, 5, 6)
    for label in range(3):
        assert torch.equal(codes[label, :, 1:4].argmax(1), torch.full((5,), label))
        assert torch.equal(codes[label][:, [0, 4, 5]], styles[:, [0, 4, 5]])


def test_a_walk_goes_from_each_class_to_the_next_in_one_style() -> None:
    style = torch.randn(6)
    codes = class_walks(style, PART, 5)
    assert codes.shape == (3, 5, 6)
    assert codes[:, 0, 1:4].tolist() == torch.eye(3).tolist()
    assert codes[:, -1, 1:4].argmax(1).tolist() == [1, 2, 0]
    assert torch.allclose(codes[:, :, 1:4].sum(2), torch.ones(3, 5))
    assert torch.equal(codes[:, :, [0, 4, 5]], style[[0, 4, 5]].expand(3, 5, 3))


def test_interpolate_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = save(tmp_path / "run", CLASSES, STYLE)
    for kind, shape in (("styles", (40, 1, 28, 28)), ("classes", (40, 1, 28, 28))):
        out = tmp_path / f"{kind}.npy"
        assert main(["interpolate", uri, "--kind", kind, "--steps", "4", "--out", str(out)]) == 0
        assert np.load(out).shape == shape
        assert "10 rows of 4 images" in capsys.readouterr().out
    save_run(tmp_path / "plain")
    plain = aae_dist.load_run(str(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="--kind styles changes the class and keeps the style"):
        codes_of(plain, InterpolationOptions(kind="styles"))


def test_ways_between_samples_keep_a_given_label(tmp_path: Path) -> None:
    uri = save(tmp_path / "run", CLASSES | {"given": "label"}, STYLE)
    run = aae_dist.load_run(uri)
    codes = codes_of(run, InterpolationOptions(num=6, steps=3))
    assert torch.equal(codes[:, 0, :10], codes[:, 2, :10])
    assert not torch.equal(codes[:, 0, 10:], codes[:, 2, 10:])
    assert set(codes[:, :, :10].sum(2).unique().tolist()) == {1.0}


def test_encode_writes_the_probabilities_of_classes(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    uri = save(tmp_path / "run", STYLE, CLASSES)
    out = tmp_path / "codes"
    assert main(["encode", uri, "builtin://digits/validation", "--out", str(out)]) == 0
    (file, *_) = sorted(out.glob("*.parquet"))
    table = parquet.read_table(file).to_pydict()
    codes = np.array(table["code"], np.float32)
    assert np.array_equal(np.array(table["probabilities"], np.float32), codes[:, 2:])
    assert table["predicted"] == codes[:, 2:].argmax(1).tolist()
    assert np.allclose(codes[:, 2:].sum(1), 1.0, atol=1e-5)


def test_a_class_of_a_run_that_read_labels_is_its_label(tmp_path: Path) -> None:
    uri = save(tmp_path / "run", CLASSES | {"given": "label"}, STYLE)
    run = aae_dist.load_run(uri)
    run.classes = {3: "cat", 5: "dog", 12: "cow"}
    assert classes_of_names(run, ["dog", "cat"]) == {"dog": (5, 1.0), "cat": (3, 1.0)}
    with pytest.raises(ConfigError, match="'cow' is label 12, and the prior of .* has 10 classes"):
        classes_of_names(run, ["cow"])
    assert run.sample(3, labels=[5, 5, 5]).shape == (3, 1, 28, 28)
