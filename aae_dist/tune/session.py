"""The training of one trial in a thread of its own, reported point by point."""

import contextlib
import gc
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aae_dist.checkpoints.format import Checkpoint
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, config_from_stored
from aae_dist.distributed.world import from_environment
from aae_dist.errors import AaeDistError, CheckpointError, Interrupted, RunBusyError
from aae_dist.launch.ending import StopReason, StopToken
from aae_dist.launch.local import LocalReporter
from aae_dist.launch.ray import cluster, driver, monitor
from aae_dist.storage import Storage, join, open_storage
from aae_dist.storage.documents import read_document
from aae_dist.sweeps.folder import Exploit
from aae_dist.training.folder import Outcome, RunState, write_marker
from aae_dist.training.lock import RunLock
from aae_dist.training.trainer import train

REPORT_SECONDS = 1.0  # least time between two reports of progress that hold no score
LOCK_SECONDS = 45.0
"""How long to wait for a run that another process still holds: Ray may still be ending it."""
POLL_SECONDS = 0.2

Metrics = dict[str, float]
PENDING = "takeover.json"  # in a run's folder while a parent's state is copied into it
OWN = ("run", "launch", "checkpoint", "wandb")
"""Sections that a run keeps when it exploits another one's state; of `run` not the seed."""


@dataclass(frozen=True)
class Ended:
    """How a training ended: exactly one of the three is set."""

    outcome: Outcome | None = None
    mistake: str | None = None
    """An error that another try would meet again, in one line that starts with its class."""
    crash: BaseException | None = None


class Channel:
    """Log points on their way from the training to Tune: the training never runs far ahead."""

    def __init__(self, config: RunConfig, scores: tuple[str, ...], stop: StopToken) -> None:
        self._train, self._scores, self._stop = config.train, scores, stop
        self._events: queue.Queue[Metrics | Ended] = queue.Queue(maxsize=1)
        self._reported_at = 0.0

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass a log point on, and wait while the one before is not taken."""
        scored = any(name in metrics for name in self._scores)
        is_time = time.monotonic() - self._reported_at >= REPORT_SECONDS
        if self._is_last(metrics) or not (scored or is_time):
            # The last one goes with the outcome: a scheduler must not cut a finished trial.
            return
        self._reported_at = time.monotonic()
        while not self._stop.requested:
            with contextlib.suppress(queue.Full):
                self._events.put(dict(metrics), timeout=POLL_SECONDS)
                return

    def finish(self, ended: Ended) -> None:
        self._events.put(ended)

    def next(self) -> Metrics | Ended:
        return self._events.get()

    def drain(self) -> Ended:
        while not isinstance(event := self._events.get(), Ended):
            pass
        return event

    def _is_last(self, metrics: Mapping[str, float]) -> bool:
        steps, epochs = self._train.steps, self._train.epochs
        if steps is not None:
            return metrics["step"] >= steps
        return epochs is not None and metrics["epoch"] >= epochs


class Session:
    """A training under way."""

    def __init__(
        self, train: Callable[[Channel, StopToken], Outcome], channel: Channel, stop: StopToken
    ) -> None:
        self._train, self._channel, self._stop = train, channel, stop
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Metrics | Ended:
        return self._channel.next()

    def stop(self, reason: StopReason) -> Ended:
        self._stop.request(reason)
        return self._channel.drain()

    def _run(self) -> None:
        self._channel.finish(self._ended())

    def _ended(self) -> Ended:
        """Train; a run that a process on its way out still holds is tried again."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return Ended(outcome=self._train(self._channel, self._stop))
            except AaeDistError as error:
                if not isinstance(error, RunBusyError) or time.monotonic() > deadline:
                    return Ended(mistake=f"{type(error).__name__}: {error}")
            except BaseException as error:  # noqa: BLE001  # It is raised again where Tune sees it.
                return Ended(crash=error)
            time.sleep(1.0)


def train_here(
    prepare: Callable[[], RunConfig],
    launch_id: str,
    pause_every: int | None,
    channel: Channel,
    stop: StopToken,
) -> Outcome:
    """Train a run with one worker, this process.

    `prepare` makes the trial's run ready and returns its configuration. Restarts of a sweep's
    trials take over their locks by `launch_id`. After `pause_every` steps the training ends,
    interrupted, to be resumed.
    """
    _free_memory()  # of a trial that failed: its error held it until now
    config = prepare()
    torch.set_num_threads(config.launch.cpus)
    world = from_environment(cluster.own_device(config.train.device))
    try:
        return train(config, world, SessionReporter(channel, stop, pause_every), launch_id)
    finally:
        _free_memory()


def _free_memory() -> None:
    """Free what a training held: the process waits for the next trial next to other ones.

    References go in circles, also through matplotlib's errors, so that only a collection ends them.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def train_on_ray(config: RunConfig, channel: Channel, stop: StopToken) -> Outcome:
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
        state = RunState(stop.reason or StopReason.INTERRUPTED)
        return Outcome(state, 0, {}, folder.uri)


class SessionReporter(LocalReporter):
    """Reports to a channel; also stops at multiples of `pause_every`. Trials save at intervals.

    Lines go to the worker's log, which Ray keeps on its node.
    """

    def __init__(self, channel: Channel, stop: StopToken, pause_every: int | None) -> None:
        super().__init__(stop)
        self._channel, self._pause_every, self._paused = channel, pause_every, False

    def report(self, metrics: Mapping[str, float]) -> None:
        if self._pause_every and metrics["step"] % self._pause_every == 0:
            self._paused = True
        else:
            self._channel.report(metrics)

    def stop_requested(self) -> bool:
        return super().stop_requested() or self._paused


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
