"""One trial of a sweep, as Ray Tune sees it: a process that trains one run after another."""

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.train._internal.checkpoint_manager import _TrainingResult as TrainingResult  # type: ignore[attr-defined]

from aae_dist.checkpoints import Checkpoint, CheckpointStore
from aae_dist.config import RunConfig, config_from_stored, metric_names
from aae_dist.errors import CheckpointError, Interrupted
from aae_dist.launch import ending, trial_session
from aae_dist.launch.ray import driver, monitor
from aae_dist.storage import Storage, documents, join, open_storage
from aae_dist.sweeps import Objective, TrialState
from aae_dist.sweeps.folder import Exploit
from aae_dist.training.folder import Outcome, RunState, check_marker, write_marker
from aae_dist.training.lock import RunLock
from aae_dist.tune.sweep import ENVIRONMENT, tune_folder

SWEEP = "sweep"
"""Key of a trial's config: {id, config (JSON of its run), values (parameters as they are now)}."""
OBJECTIVE = "objective"  # key of a result: the number that schedulers compare
VIOLATIONS = "violations"
"""Key of a result: for each constraint by how much it is above its bound, in units of the bound."""
KEPT = "constraints_kept"  # key of a result: whether all constraints are kept
STATE, CAUSE, LINEAGE = "trial_state", "trial_cause", "trial_lineage"
"""Keys of a result: how the trial ended and why; a parent's state that it exploited."""
EMPTY_SECONDS = 120.0
HOST = "host"
PENDING = "takeover.json"  # in a run's folder while a parent's state is copied into it
OWN = ("run", "launch", "checkpoint", "wandb")
"""Sections that a run keeps when it exploits another one's state; of `run` not the seed."""


class Pointer(tune.Checkpoint):
    """Names the state of a run at a step; the state itself stays in the run's folder.

    It travels in memory, with Tune's own messages. Tune would upload a checkpoint to the
    experiment's folder, which is the driver's alone and which no other node sees.
    """

    def __init__(self, uri: str, step: int) -> None:
        super().__init__(uri, filesystem=LocalFileSystem())  # never opened
        self.uri, self.step = uri, step


@dataclass(frozen=True)
class SweepTask:
    """Settings of all trials of one start of a sweep."""

    uri: str  # the sweep's folder
    token: str  # marker that the driver wrote into it
    objective: Objective
    launch_id: str
    monitor: Any  # handle of the `Monitor` actor, which relays requests to stop the sweep
    search_path: str  # the driver's working directory, which may hold a prior of the user's own
    pause_every: int | None = None  # steps between two comparisons of PBT; trials pause there


class Trial(tune.Trainable):
    """Trains the run of `config["sweep"]`; Tune gives the process the next one when it is done.

    A class, not a function: Tune calls it when the scheduler stops it, so it can save, close W&B
    and release the run's lock; and it is used again, so that torch is imported once per slot.
    """

    def setup(self, config: dict[str, Any], task: SweepTask) -> None:  # type: ignore[override]
        if task.search_path not in sys.path:
            sys.path.append(task.search_path)
        self._task, self._listener = task, monitor.StopListener(task.monitor)
        self._session: trial_session.Session | None = None
        self._parent: dict[str, Any] | None
        self._lineage: dict[str, Any] | None
        self._take(config)

    def step(self) -> dict[str, Any]:
        if self._session is None and self._listener.token.requested:
            return {"done": True, STATE: ending.StopReason.INTERRUPTED}
        if self._session is None:
            self._session = self._start()
        event = self._session.next()
        if not isinstance(event, trial_session.Ended):
            return self._result(event)
        self._session = None
        if event.crash is not None:
            raise event.crash
        if event.outcome is None:
            return {"done": True, STATE: TrialState.FAILED, CAUSE: event.mistake}
        return self._ended(event.outcome)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial; one that Tune has stopped is ended properly first."""
        self._end_session()
        self._take(new_config)
        return True

    def cleanup(self) -> None:
        self._end_session()
        self._listener.close()

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Return a pointer to the trial's state, which its run folder holds; store nothing."""
        newest: Any = self._last_result
        return TrainingResult(Pointer(self._uri, self._at_step), dict(newest or {}))

    def restore(self, checkpoint_path: Any) -> None:
        """Resume from the state that a pointer names: the trial's own, or a parent's (PBT)."""
        pointer: Pointer = checkpoint_path.checkpoint
        is_own = pointer.uri == self._uri
        self._parent = None if is_own else {"uri": pointer.uri, "step": pointer.step}

    def _take(self, config: dict[str, Any]) -> None:
        self._point = config[SWEEP]
        self._config = RunConfig.model_validate_json(self._point["config"])
        self._uri = join(self._config.run.storage, self._config.run.name)
        self._parent, self._lineage, self._at_step = None, None, 0

    def _start(self) -> trial_session.Session:
        task, config = self._task, self._config
        stop = ending.StopToken(parent=self._listener.token)
        channel = trial_session.Channel(config, task.objective.inputs, stop)
        if config.launch.most_workers > 1:
            return trial_session.Session(partial(train_on_ray, config), channel, stop)
        here = partial(trial_session.train_here, self._prepare, task.launch_id, task.pause_every)
        return trial_session.Session(here, channel, stop)

    def _prepare(self) -> RunConfig:
        """Return the run's configuration; with PBT, with its changes and a parent's state."""
        # A folder that only looks the same would take the results with it.
        check_marker(open_storage(self._task.uri), self._task.token)
        if not self._task.pause_every:
            return self._config
        if self._parent is not None:
            values, launch_id = self._point["values"], self._task.launch_id
            self._lineage = exploit(self._config, self._parent, values, launch_id)
            self._parent = None
        return resumed_config(self._config, self._task.launch_id)

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.stop(ending.StopReason.PRUNED)
            self._session = None

    def _ended(self, outcome: Outcome) -> dict[str, Any]:
        result = self._result(outcome.metrics)
        self._at_step = outcome.step
        if outcome.state in (RunState.FINISHED, RunState.ALREADY_FINISHED):
            end = {
                "done": True,
                STATE: TrialState.FINISHED,
                CAUSE: self._task.objective.no_score(outcome.metrics),
            }
            return result | end
        if self._task.pause_every and not self._listener.token.requested:
            return result
        return result | {"done": True, STATE: ending.StopReason.INTERRUPTED}

    def _result(self, metrics: dict[str, float]) -> dict[str, Any]:
        self._at_step = int(metrics.get("step", 0))
        result: dict[str, Any] = {"metrics": dict(metrics), "step": self._at_step}
        result |= {name: metrics.get(name, 0) for name in ("epoch", "samples_seen")}
        result |= {name: metrics[name] for name in metric_names.BASIS if name in metrics}
        objective = self._task.objective
        values, violations = objective.values(metrics), objective.violations(metrics)
        if values is not None and violations is not None:
            result |= {f"{OBJECTIVE}{n}": value for n, value in enumerate(values)}
            result |= {VIOLATIONS: list(violations), KEPT: objective.is_kept(metrics)}
            result[OBJECTIVE] = objective.comparable_score(metrics)
        if self._lineage is not None:
            result[LINEAGE], self._lineage = self._lineage, None
        return result


class EmptyTrial(Trial):
    """Ends at its first step, and answers when Tune saves it as a trial does."""

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        self._uri, self._at_step = "none", 0

    def step(self) -> dict[str, Any]:
        return {"done": True, HOST: socket.gethostname()}

    def cleanup(self) -> None:
        return None


def run_empty_trial(config: RunConfig) -> tuple[str, str]:
    """Run a trial on a node that trains, save and end it; return (host, '') or ('', failure).

    The doctor holds the GPUs, so the trial takes CPUs only.
    """
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    place_on = tune.PlacementGroupFactory([{"CPU": float(config.launch.cpus)}])
    with tune_folder() as place:
        tuner = tune.Tuner(
            tune.with_resources(EmptyTrial, place_on),
            tune_config=tune.TuneConfig(time_budget_s=EMPTY_SECONDS),
            run_config=tune.RunConfig(
                name="doctor",
                storage_path=place,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            ),
        )
        try:
            result = tuner.fit()[0]
        except Exception as error:  # Tune and Ray raise many kinds
            return "", ending.last_line(error)
    if result.error is not None:
        return "", ending.last_line(result.error)
    host = (result.metrics or {}).get(HOST, "")
    return host, "" if host else f"no trial started within {EMPTY_SECONDS:.0f} s"


# Several workers, and population based training.


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
    event = documents.read_document(folder, PENDING, Exploit)
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
