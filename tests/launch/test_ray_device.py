"""Who owns no GPU takes none, although it sees them."""

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("ray")

import ray
import torch

from aae_dist.config import load_config
from aae_dist.data import Manifest
from aae_dist.inference.dataset_job import DatasetJob
from aae_dist.launch import local
from aae_dist.launch.ending import StopToken
from aae_dist.launch.ray import worker as ray_worker
from aae_dist.launch.ray.cluster import own_device
from aae_dist.launch.trial_session import Channel, train_here
from aae_dist.training import trainer

pytestmark = pytest.mark.ray


@pytest.fixture
def owned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the GPUs that Ray has given this process, to be changed; torch sees one."""
    gpus: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: gpus)
    return gpus


def test_auto_is_the_gpu_of_who_owns_one(owned: list[int]) -> None:
    assert own_device("auto") == "cpu"
    assert own_device("cuda") == "cuda", "asked for by name"
    owned.append(3)
    assert own_device("auto") == "auto"


def test_without_ray_auto_stays_as_it_is(owned: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert own_device("auto") == "auto"


def test_a_task_and_a_trial_without_a_gpu_use_the_cpu(
    owned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    monkeypatch.setattr(local, "write_shard", lambda job, *_: used.append(job.device) or 1)
    monkeypatch.setattr(trainer, "train", lambda config, world, *_: used.append(world.device.type))
    config = load_config(
        [], ["run.name=a", "train.steps=1", "data.train=builtin://digits/train"]
    ).config
    channel, stop = Channel(config, (), StopToken()), StopToken()
    for gpus in ([], [0]):
        owned[:] = gpus
        local.write_in_task(DatasetJob("run", 1, "{}", 1, "auto", "out", "npy"), 0, None)  # type: ignore[arg-type]
        train_here(lambda: config, "id", None, channel, stop)
    assert used == ["cpu", "cpu", "auto", "cuda"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_ends_the_run_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[Exception] = []
    monkeypatch.setattr(ray_worker, "report_fatal", lambda spec, error: reported.append(error))
    items = ["run.name=a", "train.steps=1", "data.train=builtin://digits/train"]
    config = load_config([], [*items, "train.device=cuda"]).config
    spec = Mock(search_path=sys.path[0], config=config.model_dump_json())
    assert ray_worker.run_rank(spec) is None
    assert "torch sees no GPU" in str(reported[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_who_asks_workers_to_encode_needs_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(local, "_through_ray", lambda config, calls: done.append(calls) or [])
    monkeypatch.setattr(local.output, "claim_output", lambda *_: False)
    monkeypatch.setattr(local.output, "missing", lambda *_: [])
    monkeypatch.setattr(local.output, "complete", lambda *_: None)
    items = ["run.name=a", "train.steps=1", "data.train=builtin://digits/train"]
    config = load_config([], [*items, "launch.workers=2"]).config
    job = DatasetJob("run", 1, "{}", 1, "cuda", str(tmp_path), "npy")
    assert local.write_shards(config, job, Manifest(()), {}) == 0
    assert done == [[]]
