"""Trials of several workers, and of population based training, which exploit each other."""

import json
from collections.abc import Mapping
from typing import Any

from aae_dist.checkpoints import Checkpoint, CheckpointStore
from aae_dist.config import RunConfig, config_from_stored
from aae_dist.errors import CheckpointError, Interrupted
from aae_dist.launch import ending, trial_session
from aae_dist.launch.ray import driver, monitor
from aae_dist.storage import Storage, join, open_storage
from aae_dist.storage.documents import read_document
from aae_dist.sweeps.folder import Exploit
from aae_dist.training.folder import Outcome, RunState, write_marker
from aae_dist.training.lock import RunLock

PENDING = "takeover.json"  # in a run's folder while a parent's state is copied into it
OWN = ("run", "launch", "checkpoint", "wandb")
"""Sections that a run keeps when it exploits another one's state; of `run` not the seed."""


def train_on_ray(
    config: RunConfig, channel: trial_session.Channel, stop: ending.StopToken
) -> Outcome:
    """Train a run with several workers: a Ray Train run of the trial's name, so that it resumes."""

    def on_update(update: monitor.DriverUpdate) -> None:
        monitor.print_lines(update)
        for metrics in update.metrics:
            channel.report(metrics)

    folder = open_storage(join(config.run.storage, config.run.name))
    token = write_marker(folder)
    try:
        with driver.ray_storage(folder) as storage:
            return driver.run_on_ray(config, token, storage, stop, on_update).unwrap()
    except Interrupted:  # before any worker had started
        state = RunState(stop.reason or ending.StopReason.INTERRUPTED)
        return Outcome(state, 0, {}, folder.uri)


def exploit(
    config: RunConfig, parent: Mapping[str, Any], values: Mapping[str, Any], launch_id: str
) -> dict[str, Any]:
    """Replace a run's checkpoints by those of a parent, with other rates; return the event.

    Everything that decides the next steps is the parent's: networks, optimizers, their schedules,
    data position and seed. The copy is bit for bit; only the configuration next to it is changed.
    No other process may write the run now. `parent` is {uri, step} of a checkpoint, and `values`
    are by dotted key under phases or method. CheckpointError when no checkpoint of it verifies.
    """
    folder = open_storage(join(config.run.storage, config.run.name))
    event = {"parent": parent["uri"], "step": parent["step"], "values": dict(values)}
    with RunLock.acquire(folder, launch_id) as lock:
        folder.write(PENDING, json.dumps(event).encode())
        return _copy(config, folder, event, lock)


def resumed_config(config: RunConfig, launch_id: str) -> RunConfig:
    """Return the configuration to resume with: that of the newest checkpoint, if there is one.

    An exploit step that was interrupted is repeated first.
    """
    folder = open_storage(join(config.run.storage, config.run.name))
    event = read_document(folder, PENDING, Exploit)
    if event is not None:
        with RunLock.acquire(folder, launch_id) as lock:
            _copy(config, folder, event.model_dump(), lock)
    saved = CheckpointStore(folder, keep=1).newest()
    return config if saved is None else _with_values(config, saved.metadata["config"], {})


def _copy(
    config: RunConfig, folder: Storage, event: dict[str, Any], lock: RunLock
) -> dict[str, Any]:
    saved = _state_of(event["parent"], event["step"])
    rates = {key: v for key, v in event["values"].items() if key != "run.seed"}
    merged = _with_values(config, saved.metadata["config"], rates)
    documents = {**saved.metadata, "config": merged.model_dump(mode="json")}
    store = CheckpointStore(folder, config.checkpoint.keep, lock.check, lock.attempt)
    # Newer ones of its own would be found first.
    lock.check()
    folder.clear("checkpoints")
    store.save(saved.step, saved.tensors, documents)
    store.wait()
    folder.delete(PENDING)
    return {**event, "step": saved.step}


def _state_of(uri: str, step: int) -> Checkpoint:
    store = CheckpointStore(open_storage(uri), keep=1)
    try:
        return store.load(step)
    except CheckpointError:
        # The parent has continued and no longer keeps that step.
        saved = store.newest()
    if saved is None:
        raise CheckpointError(f"{uri} has no checkpoint to exploit")
    return saved


def _with_values(
    config: RunConfig, other: Mapping[str, Any], values: Mapping[str, Any]
) -> RunConfig:
    own = config.model_dump(mode="json")
    tree: dict[str, Any] = json.loads(json.dumps(other))
    seed = tree["run"]["seed"]
    tree |= {section: own[section] for section in OWN}
    tree["run"]["seed"] = seed
    tree["train"] |= {key: own["train"][key] for key in ("steps", "epochs")}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node[key]
        node[last] = value
    return config_from_stored(tree)
