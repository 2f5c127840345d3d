"""One configuration trains here and is submitted: only `launch.kind` differs."""

from typing import Any

import pytest

import aae_dist
from aae_dist.config import config_from_tree
from aae_dist.config.schema import plain
from aae_dist.config.yaml import parse

CONFIG: dict[str, Any] = {
    "run": {"name": "a", "storage": "s3://bucket/runs"},
    "data": {"train": "s3://bucket/train"},
    "train": {"steps": 3},
}
ADDRESS = "http://localhost:8265"


def test_the_configuration_that_trains_here_is_submitted_with_one_change() -> None:
    here = aae_dist.load_config(CONFIG)
    sent = aae_dist.submit(here, ADDRESS, overrides=["launch.kind=ray"], dry_run=True)
    there = config_from_tree(plain(parse(sent, "sent")))
    assert there.launch.kind == "ray"
    assert there.model_copy(update={"launch": here.launch}) == here
    assert aae_dist.submit({**CONFIG, "launch": {"kind": "ray"}}, ADDRESS, dry_run=True)


def test_a_sweep_is_submitted_as_one() -> None:
    sweep = {"name": "s", "space": {"model.latent_dim": {"grid": [2, 3]}}}
    data = {"data": {"train": "s3://bucket/train", "validation": "s3://bucket/validation"}}
    sent = aae_dist.submit({**CONFIG, **data, "sweep": sweep}, ADDRESS, dry_run=True)
    assert "grid" in sent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": ADDRESS}, "launch.kind=local trains on one machine"),
        ({}, "give one of address"),
        ({"address": "localhost"}, "give the dashboard's address"),
    ],
)
def test_what_cannot_be_submitted_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(aae_dist.AaeDistError, match=message):
        aae_dist.submit(aae_dist.load_config(CONFIG), **arguments)


def test_a_run_is_no_sweep() -> None:
    with pytest.raises(aae_dist.ConfigError, match="no `sweep` section"):
        aae_dist.tune(aae_dist.load_config(CONFIG))
