"""One rank of a run inside a Ray Train worker."""

import dataclasses
import sys
import time
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device

from aae_dist.config import RunConfig
from aae_dist.config.redaction import redact
from aae_dist.distributed.collectives import broadcast_json, control_group, run_on_all_ranks
from aae_dist.distributed.world import World, from_environment
from aae_dist.errors import AaeDistError, RanksDifferError
from aae_dist.launch import shared_storage as nonce
from aae_dist.launch.failures import WorkersFailedError, is_collateral, last_line
from aae_dist.launch.ray.entry import Task, give_up
from aae_dist.launch.ray.monitor import Payload, StopWatch
from aae_dist.launch.ray.prometheus import PrometheusSink
from aae_dist.launch.ray.screen import FarConsole
from aae_dist.storage import join, open_storage
from aae_dist.training.trainer import train

REPORT_SECONDS = 5.0
"""Least time between reports: Ray takes one a poll (1 s), and the next one would wait for it."""


class RayReporter:
    """Carries lines to the driver and metrics to Ray Train."""

    def __init__(self, monitor: Any, world: World) -> None:
        """Report through the actor `monitor`; rank 0 also listens to it for the request to stop."""
        self._monitor = monitor
        self._world = world
        self._watch = StopWatch(monitor) if world.is_main else None
        self._pending: dict[str, float] = {}
        self._reported_at = time.monotonic()

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass the newest value of each metric to Ray Train, now or with a later call.

        Ray's report is a barrier that may wait for a second, so rank 0 decides for all when it
        is worth one.
        """
        if self._world.is_main:
            self._monitor.add_metrics.remote(dict(metrics))
        self._pending |= metrics
        due = time.monotonic() - self._reported_at >= REPORT_SECONDS
        if broadcast_json(due, self._world):
            ray.train.report(self._pending)
            self._pending = {}
            self._reported_at = time.monotonic()

    def flush(self) -> None:
        """Pass on what no call of `report` was due for; every rank calls it, at the end."""
        if self._pending:
            ray.train.report(self._pending)
            self._pending = {}

    def stop_requested(self) -> bool:
        """Return whether the driver asked to stop, as far as this rank has heard."""
        return self._watch is not None and self._watch.requested

    def stopped_as(self) -> str:
        """Return what the driver said when it asked to stop."""
        return self._watch.stop_as if self._watch is not None else "interrupted"

    def save_requested(self) -> bool:
        """Return whether a node has started to drain since the last call."""
        if self._watch is None or not self._watch.save_requested:
            return False
        self._watch.save_requested = False
        self.line("a node is being drained: saving a checkpoint now")
        return True

    def line(self, text: str) -> None:
        """Send one line to the driver, without waiting."""
        self._monitor.add_line.remote(redact(text))

    def close(self) -> None:
        """Stop listening."""
        if self._watch is not None:
            self._watch.close()


def run_rank(task: Task) -> Payload:
    """Train as one rank; return a mistake of the user's, since Ray would retry an exception."""
    if task.search_path not in sys.path:
        sys.path.append(task.search_path)
    config = RunConfig.model_validate_json(task.config)
    torch.set_num_threads(config.launch.cpus_per_worker)
    try:
        world = from_environment(config.train.device)
    except AaeDistError as error:
        return give_up(task, error)
    if world.device.type == "cuda":
        world = dataclasses.replace(world, device=get_device())
    if world.is_main:
        task.monitor.set_workers_up.remote(True)
    return _train(task, config, world)


def _train(task: Task, config: RunConfig, world: World) -> Payload:
    reporter = RayReporter(task.monitor, world)
    folder = open_storage(join(config.run.storage, config.run.name))
    try:
        if world.size > 1:
            control_group()  # Ray Train has set up the process group
        run_on_all_ranks(world, lambda: nonce.check(folder, task.nonce))
        sinks = [PrometheusSink(config.run.name)] if world.is_main else []
        console = partial(FarConsole, task.monitor) if task.has_screen else None
        outcome = train(config, world, reporter, task.launch_id, sinks, console)
        reporter.flush()
    except Exception as error:
        # Ranks that differ are a machine's fault, so they start again like those that died.
        if isinstance(error, AaeDistError) and not isinstance(error, RanksDifferError):
            return give_up(task, error)
        repeated = repeated_failure(task, world.rank, error)
        if repeated is None:
            raise
        return repeated
    finally:
        reporter.close()
    return {"outcome": dataclasses.asdict(outcome)}


def repeated_failure(task: Task, rank: int, error: Exception) -> Payload | None:
    """Return what to end the run with when the same step has failed so before, else None.

    A start from the newest checkpoint computes the same numbers, so a third try would fail alike.
    """
    if is_collateral(last_line(error)):
        return None
    cause = ", ".join([last_line(error), *getattr(error, "__notes__", [])])
    if not ray.get(task.monitor.note_failure.remote(cause)):
        return None
    traceback.print_exception(error)
    message = f"rank {rank} failed twice alike, so it is not started again: {cause}"
    return give_up(task, WorkersFailedError(message))
