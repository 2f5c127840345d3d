"""What Ray Train is given, without a cluster."""

import json
from pathlib import Path

import pytest

pytest.importorskip("ray.train")

from ray.train.v2._internal.state.export import _dict_to_struct
from ray.train.v2._internal.state.schema import RunSettings
from ray.train.v2._internal.util import count_required_parameters

from aae_dist.config import load_config
from aae_dist.launch.ray.cluster import ResourceRequest
from aae_dist.launch.ray.train import WorkerSpec, build_trainer

pytestmark = pytest.mark.ray


def test_the_dashboard_gets_the_configuration_as_an_object_without_secrets(tmp_path: Path) -> None:
    signed = "https://ann:pass-word@example.org/a-{000..001}.tar?X-Signature=signature-of-mine"
    items = ["run.name=a", "train.steps=1", f"data.train={signed}"]
    config = load_config([], [*items, f"run.storage={tmp_path}"]).config
    spec = WorkerSpec(config.model_dump_json(), "id", "token-of-mine", None, "/")
    request = ResourceRequest(2, {"CPU": 1.0})
    trainer = build_trainer(config, request, spec, str(tmp_path / "ray"))
    shown = trainer.train_loop_config
    assert shown["run"]["name"] == "a"
    for secret in ("pass-word", "signature-of-mine", "token-of-mine"):
        assert secret not in json.dumps(shown)
    # Ray's state tracking validates it so, and exports it as a message.
    RunSettings.__pydantic_validator__.validate_assignment(
        RunSettings.model_construct(), "train_loop_config", shown
    )
    assert _dict_to_struct(shown)["run"]["name"] == "a"
    assert count_required_parameters(trainer.train_loop_per_worker) == 0  # it gets the spec itself
