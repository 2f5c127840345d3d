"""Metadata that no run saves is refused, even in a checkpoint that verifies."""

import json
from pathlib import Path
from typing import Any

import pytest

from aae_dist.checkpoints.format import Checkpoint, check_metadata
from aae_dist.errors import CheckpointError

SCHEMA_1 = Path(__file__).parents[1] / "training" / "checkpoints" / "schema-1"
FROZEN = SCHEMA_1 / "checkpoints" / "step-000000008"
ENTRY = {
    "shard": "a.tar",
    "sample": 3,
    "key": "k",
    "reason": "image",
    "detail": "damaged",
    "samples": 1,
    "step": 1,
    "epoch": 0,
}


def metadata(name: str = "state", **changed: Any) -> dict[str, Any]:
    found = {n: json.loads((FROZEN / f"{n}.json").read_text()) for n in ("state", "data")}
    found[name] |= changed
    return found


def test_what_runs_save_passes() -> None:
    check_metadata(Checkpoint(8, {}, metadata()))
    bad = {"entries": [ENTRY, ENTRY | {"sample": None, "key": None}], "num_holes": 4, "in_a_row": 0}
    check_metadata(Checkpoint(8, {}, metadata(bad_samples=bad, best=0.25, lr_factor=0.5)))
    check_metadata(Checkpoint(8, {}, metadata("data", shuffle_window=500)))


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("state", {"position": -1}, "state.position"),
        ("state", {"position": 2**63}, "state.position"),
        ("state", {"position": "8"}, "state.position"),
        ("state", {"position": 8.0}, "state.position"),
        ("state", {"step": 9}, "the state of step 9"),
        ("state", {"step": -8}, "state.step"),
        ("state", {"best": "low"}, "state.best"),
        ("state", {"lr_factor": 1e30}, "state.lr_factor"),
        ("state", {"lr_factor": 0}, "state.lr_factor"),
        ("state", {"samples_shift": 2**70}, "state.samples_shift"),
        ("state", {"extra": 1}, "state.extra"),
        ("state", {"bad_samples": {"num_holes": -3}}, "state.bad_samples.num_holes"),
        ("state", {"bad_samples": {"entries": [{}]}}, "state.bad_samples.entries.0.shard"),
        ("state", {"bad_samples": {"entries": [ENTRY | {"samples": -5}]}}, "entries.0.samples"),
        ("data", {"lanes": 0}, "data.lanes"),
        ("data", {"num_samples": 0}, "data.num_samples"),
        ("data", {"shuffle_window": "some"}, "data.shuffle_window"),
        ("data", {"image_shape": [1, -4, 4]}, "data.image_shape.1"),
        ("data", {"manifest": None}, "data.manifest"),
    ],
)
def test_what_no_run_saves_is_refused(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words.replace(".", r"\.")):
        check_metadata(Checkpoint(8, {}, metadata(name, **changed)))


def test_metadata_that_is_missing_or_no_object_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds what no run saves: state"):
        check_metadata(Checkpoint(8, {}, {}))
    with pytest.raises(CheckpointError, match="holds what no run saves: data"):
        check_metadata(Checkpoint(8, {}, metadata() | {"data": [1]}))
