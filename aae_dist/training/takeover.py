"""A run that goes on from another run's state: what population based training does with trials."""

import json
from collections.abc import Mapping
from typing import Any

from aae_dist.checkpoints.store import CheckpointStore, Saved
from aae_dist.config import RunConfig, config_from_stored
from aae_dist.errors import CheckpointError
from aae_dist.storage import Storage, join, open_storage, read_or_none
from aae_dist.training.run.lock import RunLock

PENDING = "takeover.json"
"""Stands in a run's folder while a donor's state is copied into it."""
OWN = ("run", "launch", "checkpoint", "wandb")
"""Sections that a run keeps when it takes over another one's state; of `run` not the seed."""


def take_over(
    config: RunConfig, donor: Mapping[str, Any], values: Mapping[str, Any], launch_id: str
) -> dict[str, Any]:
    """Replace a run's checkpoints by a donor's, with other rates.

    Everything that decides what comes next is the donor's: networks, optimizers, their schedules,
    data position and seed. The copy is bit for bit; only the configuration beside it is changed.

    Args:
        config: the run that takes over; nobody else writes it now.
        donor: {uri, step} of the checkpoint to go on from.
        values: dotted keys under phases or method, and what they shall be.
        launch_id: of the lock that is held meanwhile.

    Returns:
        What to note of it: the donor, its step and the values.

    Raises:
        CheckpointError: the donor has no checkpoint that verifies.
    """
    folder = open_storage(join(config.run.storage, config.run.name))
    event = {"donor": donor["uri"], "step": donor["step"], "values": dict(values)}
    with RunLock.acquire(folder, launch_id) as lock:
        folder.write(PENDING, json.dumps(event).encode())
        return _copy(config, folder, event, lock)


def resumed_config(config: RunConfig, launch_id: str) -> RunConfig:
    """Return the configuration to go on with: that of the newest checkpoint, if there is one.

    A take-over that was cut short is done again first.
    """
    folder = open_storage(join(config.run.storage, config.run.name))
    event = read_or_none(folder, PENDING)
    if event is not None:
        with RunLock.acquire(folder, launch_id) as lock:
            _copy(config, folder, json.loads(event), lock)
    saved = CheckpointStore(folder, keep=1).newest()
    return config if saved is None else _with_values(config, saved.documents["config"], {})


def _copy(
    config: RunConfig, folder: Storage, event: dict[str, Any], lock: RunLock
) -> dict[str, Any]:
    saved = _state_of(event["donor"], event["step"])
    rates = {key: v for key, v in event["values"].items() if key != "run.seed"}
    merged = _with_values(config, saved.documents["config"], rates)
    documents = {**saved.documents, "config": merged.model_dump(mode="json")}
    store = CheckpointStore(folder, config.checkpoint.keep, lock.check, lock.attempt)
    # Newer ones of its own would be found first.
    lock.check()
    folder.clear("checkpoints")
    store.save(saved.step, saved.tensors, documents)
    store.wait()
    folder.delete(PENDING)
    return {**event, "step": saved.step}


def _state_of(uri: str, step: int) -> Saved:
    store = CheckpointStore(open_storage(uri), keep=1)
    try:
        return store.load(step)
    except CheckpointError:
        # The donor has gone on and no longer keeps that step.
        saved = store.newest()
    if saved is None:
        raise CheckpointError(f"{uri} has no checkpoint to take over")
    return saved


def _with_values(
    config: RunConfig, other: Mapping[str, Any], values: Mapping[str, Any]
) -> RunConfig:
    """Return the configuration `other`, a resolved one, in the place of `config`."""
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
