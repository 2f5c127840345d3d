"""What a resumed run's configuration is compared with: younger keys have their defaults, and null
means as it was where the data decides.
"""

from pathlib import Path
from typing import Any

import pytest
from helpers.bad_runs import train_rank
from helpers.equality import assert_bit_equal
from helpers.ranks import single_world
from helpers.shards import write_shards
from helpers.steps import tiny_config

from aae_dist.checkpoints.format import DEFAULTS, Checkpoint
from aae_dist.config.sections.method import AdversarialMethod
from aae_dist.errors import CheckpointError
from aae_dist.training.checkpointer import (
    check_same_run,
    of_checkpoint,
    with_former_defaults,
    with_inferred,
    with_values_of_null,
)


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


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("phases", {"generator": {"clip_norm": 1.0}}),
        ("train", {"ema_decay": 0.9}),
        ("method", {"kind": "adversarial", "weight": 0.5}),
        ("data", {"crop_size": 4}),
        ("model", {"encoder": {"path": "own:Encoder"}}),
    ],
)
def test_a_key_that_is_taken_back_to_null_makes_another_run(
    section: str, change: dict[str, Any]
) -> None:
    saved = tiny_config(**{section: change}).model_dump(mode="json")
    with pytest.raises(CheckpointError, match=rf"{section}\.[a-z_.]+: saved .*, now None"):
        check_same_run(saved, tiny_config(), "the run")


def test_null_of_what_the_data_decides_means_as_it_was() -> None:
    found = {"lanes": 12, "shuffle_window": 40, "channels": 3, "image_size": 6, "resize": "crop"}
    saved = tiny_config(data=found).model_dump(mode="json")
    check_same_run(saved, tiny_config(), "the run")
    data = with_inferred(tiny_config(), saved).data
    assert {name: getattr(data, name) for name in found} == found
    for name, other in {"channels": 1, "image_size": 7, "resize": "none", "lanes": 6}.items():
        with pytest.raises(CheckpointError, match=f"data.{name}: saved"):
            check_same_run(saved, tiny_config(data={name: other}), "the run")


@pytest.mark.run
def test_a_run_goes_on_with_the_size_that_it_began_with(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [40])
    scaled, world = ("data.image_size=3", "data.resize=stretch", "train.steps=6"), single_world()
    train_rank(world, tmp_path / "shards", tmp_path / "whole", scaled)
    stopped = train_rank(world, tmp_path / "shards", tmp_path / "broken", scaled, stop_at=3)
    assert stopped["state"] == "interrupted"
    ended = train_rank(world, tmp_path / "shards", tmp_path / "broken", ("train.steps=6",))
    assert ended["state"] == "finished", ended
    assert_bit_equal(f"{tmp_path}/broken/run", f"{tmp_path}/whole/run", 6)
    for name in ("whole", "broken"):
        config = (tmp_path / name / "run" / "config.yaml").read_text()
        assert "resize: stretch" in config
        assert "image_size: 3" in config


def test_a_run_of_before_a_change_of_defaults_keeps_its_own() -> None:
    """Its checkpoint has no baseline and no balance; the same file of keys resumes it."""
    former = {"lr": 1e-3, "betas": (0.5, 0.999), "eps": 1e-3}
    phases = {"generator": {"optimizer": {"kind": "adam", **former}}}
    phases["discriminator"] = {"optimizer": {"kind": "adam", "lr": 1e-3, "betas": (0.5, 0.999)}}
    saved = tiny_config(phases=phases).model_dump(mode="json")
    del saved["method"]["balance"], saved["data"]["standardize"]
    saved["method"] |= {"weight": 1.0, "r1_weight": 0.0}
    resumed = with_former_defaults(tiny_config(), saved)
    assert resumed.method.balance == "none"
    assert resumed.data.standardize is False
    assert resumed.phases.generator.optimizer.model_dump() == {"kind": "adam", **former}
    check_same_run(saved, resumed, "the run")
    # A key that is given is not overruled.
    wanted = tiny_config(method={"kind": "adversarial", "weight": 2.0})
    with pytest.raises(CheckpointError, match="method.weight: saved 1.0, now 2.0"):
        check_same_run(saved, with_former_defaults(wanted, saved), "the run")


def test_a_run_of_before_the_default_rate_followed_the_width_keeps_its_own(tmp_path: Path) -> None:
    """A rate that the run's own configuration named is not taken silently: it is a change."""
    config = tiny_config()
    saved = config.model_dump(mode="json")
    for phase in ("reconstruction", "generator", "classification"):
        saved["phases"][phase]["optimizer"]["lr"] = 2e-3
    metadata = {"config": saved, "data": {"baseline_loss": 1.0}}
    resumed = of_checkpoint(config, Checkpoint(step=4, tensors={}, metadata=metadata))
    check_same_run(saved, resumed, "the run")
    assert resumed.phases.reconstruction.optimizer.lr == 2e-3
    saved["phases"]["generator"]["optimizer"]["lr"] = 1e-3
    resumed = of_checkpoint(config, Checkpoint(step=4, tensors={}, metadata=metadata))
    with pytest.raises(CheckpointError, match="generator.optimizer.lr: saved 0.001, now None"):
        check_same_run(saved, resumed, "the run")


def test_null_stands_for_what_it_did_when_the_run_started() -> None:
    config = tiny_config()
    saved = config.model_dump(mode="json")
    before = Checkpoint(
        step=4, tensors={}, metadata={"config": saved, "data": {"baseline_loss": 1}}
    )
    resumed = with_values_of_null(of_checkpoint(config, before), before)
    assert isinstance(resumed.method, AdversarialMethod)
    assert resumed.method.weights(32) == (0.04, 0.2, 0.03)
    assert resumed.phases.generator.optimizer.lr == 2e-3
    # The second start finds these values in the checkpoint that the first one saved.
    data = {"baseline_loss": 1.0, "defaults": DEFAULTS}
    stored = {"config": resumed.model_dump(mode="json"), "data": data}
    again = of_checkpoint(config, Checkpoint(step=5, tensors={}, metadata=stored))
    check_same_run(stored["config"], again, "the run")
    assert again == resumed
    # A run of today follows the defaults of today.
    today = Checkpoint(step=4, tensors={}, metadata={"config": saved, "data": data})
    assert with_values_of_null(of_checkpoint(config, today), today) == config
