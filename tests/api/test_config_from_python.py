"""Configurations from Python: dictionaries like the YAML, files, and what was loaded before."""

from pathlib import Path

import numpy as np
import pytest

import aae_dist
from aae_dist.api.config import resolve

SMALL = {"run": {"name": "a"}, "data": {"train": "x"}, "train": {"steps": 3}}


def test_a_dictionary_means_what_the_same_yaml_means(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: {name: a}\ndata: {train: x}\ntrain: {steps: 3}\nmodel: {latent_dim: 3}")
    of_file = aae_dist.load_config(file)
    assert aae_dist.load_config(SMALL, {"model": {"latent_dim": 3}}) == of_file
    assert aae_dist.load_config(str(file)) == of_file
    assert resolve([str(file)], (), {}) == of_file
    assert resolve(of_file, (), {}) is of_file


def test_python_trains_here_unless_the_configuration_says_where(tmp_path: Path) -> None:
    assert aae_dist.load_config(SMALL).launch.kind == "local"
    assert aae_dist.load_config(SMALL, {"launch": {"kind": "ray"}}).launch.kind == "ray"
    file = tmp_path / "a.yaml"
    file.write_text("launch: {kind: ray, workers: 3}")
    assert aae_dist.load_config(SMALL, file).launch.workers == 3
    assert aae_dist.load_config(SMALL, file, overrides=["launch.kind=local"]).launch.kind == "local"


def test_overrides_change_what_was_loaded_before() -> None:
    loaded = aae_dist.load_config(SMALL)
    assert resolve(loaded, ["train.steps=7"], {}).train.steps == 7


def test_values_of_python_are_taken_as_yaml_would_have_them() -> None:
    config = aae_dist.load_config(
        SMALL,
        {
            "model": {"latent_dim": np.int64(4), "encoder_widths": (8, np.int32(9))},
            "data": {"train": Path("shards")},
        },
    )
    assert config.model.latent_dim == 4
    assert config.model.encoder_widths == (8, 9)
    assert str(config.data.train).endswith("/shards")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": {"step": 3}}, "train.step"),
        ({"train": {"steps": "many"}}, "train.steps"),
        ({"prior": {"kind": object()}}, "config: prior.kind: text, numbers, lists"),
        ({3: {}}, "keys are text"),
        (7, "a dictionary, the path of a YAML file"),
        ("missing.yaml", "no such file"),
    ],
)
def test_wrong_configurations_are_answered_with_their_key(wrong: object, message: str) -> None:
    with pytest.raises(aae_dist.ConfigError, match=message):
        aae_dist.load_config(SMALL, wrong)  # type: ignore[arg-type]


def test_text_in_place_of_overrides_is_refused() -> None:
    with pytest.raises(aae_dist.ConfigError, match="a list of key=value"):
        aae_dist.load_config(SMALL, overrides="train.steps=3")


def test_an_own_note_is_a_warning() -> None:
    changed = {"prior": {"kind": "gaussian", "std": 2.0}}, {"prior": {"kind": "swiss_roll"}}
    with pytest.warns(UserWarning, match="prior.std=2.0 .*dropped"):
        aae_dist.load_config(SMALL, *changed, {"model": {"latent_dim": 2}})
