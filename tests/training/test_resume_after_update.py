"""A run that began before a key existed goes on: the key has its default then."""

import pytest
from helpers.steps import tiny_config

from aae_dist.errors import CheckpointError
from aae_dist.training.resume import check_same_run


def test_keys_younger_than_the_run_count_as_their_defaults() -> None:
    saved = tiny_config().model_dump(mode="json")
    del saved["train"]["compile"], saved["data"]["augment"], saved["method"]["adversary"]
    check_same_run(saved, tiny_config(), "the run")
    other = {"kind": "adversarial", "adversary": "hinge"}
    with pytest.raises(CheckpointError, match="method.adversary: saved 'bce', now 'hinge'"):
        check_same_run(saved, tiny_config(method=other), "the run")


def test_a_configuration_with_keys_that_are_gone_is_still_compared() -> None:
    saved = tiny_config().model_dump(mode="json")
    saved["train"]["gone"], saved["run"]["seed"] = 3, 8
    with pytest.raises(CheckpointError, match="run.seed: saved 8, now 0"):
        check_same_run(saved, tiny_config(), "the run")
