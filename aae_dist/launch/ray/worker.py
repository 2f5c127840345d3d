"""One rank of a run inside a Ray Train worker, and what it reports."""

import dataclasses
import math
import re
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
from aae_dist.distributed import world as ranks
from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError, RanksDifferError
from aae_dist.launch import ending
from aae_dist.launch.ending import WorkerResult
from aae_dist.launch.ray.monitor import StopListener
from aae_dist.launch.ray.train import WorkerSpec, report_fatal
from aae_dist.storage import join, open_storage
from aae_dist.tracking.sinks import Record, Summary
from aae_dist.training.folder import Outcome, check_marker
from aae_dist.training.trainer import train
from aae_dist.utils.text import redact

REPORT_SECONDS = 5.0
"""Least time between reports: Ray takes one a poll (1 s), and the next one would wait for it."""
PROGRESS_SECONDS = 0.5  # least time between two progress messages between log points
PREFIX = "aae_dist_"
"""Ray adds its own before it: `loss/generator` is served as `ray_aae_dist_loss_generator`."""


def run_rank(spec: WorkerSpec) -> WorkerResult[Outcome]:
    """Train as one rank; return a user error, since Ray would retry an exception."""
    if spec.search_path not in sys.path:
        sys.path.append(spec.search_path)
    config = RunConfig.model_validate_json(spec.config)
    torch.set_num_threads(config.launch.cpus)
    try:
        world = ranks.from_environment(config.train.device)
    except AaeDistError as error:
        return report_fatal(spec, error)
    if world.device.type == "cuda":
        world = dataclasses.replace(world, device=get_device())
    if world.is_main:
        spec.monitor.set_workers_up.remote(True)
    return _train(spec, config, world)


def _train(spec: WorkerSpec, config: RunConfig, world: World) -> WorkerResult[Outcome]:
    reporter = RayReporter(spec.monitor, world)
    folder = open_storage(join(config.run.storage, config.run.name))
    try:
        if world.size > 1:
            ranks.control_group()  # Ray Train has set up the process group
        ranks.run_on_all_ranks(world, lambda: check_marker(folder, spec.token))
        sinks = [PrometheusSink(config.run.name)] if world.is_main else []
        console = partial(RemoteConsole, spec.monitor) if spec.driver_shows_progress else None
        outcome = train(config, world, reporter, spec.launch_id, sinks, console)
        reporter.flush()
    except Exception as error:
        # Ranks that differ are a machine's fault, so they start again like those that died.
        if isinstance(error, AaeDistError) and not isinstance(error, RanksDifferError):
            return report_fatal(spec, error)
        if (repeated := repeated_failure(spec, world.rank, error)) is None:
            raise
        return repeated
    finally:
        reporter.close()
    return WorkerResult(value=outcome)


def repeated_failure(spec: WorkerSpec, rank: int, error: Exception) -> WorkerResult[Outcome] | None:
    """Return the end of a run whose same step has failed before in the same way, else None.

    A start from the newest checkpoint computes the same numbers, so a third try would fail, too.
    """
    if ending.is_collateral(ending.last_line(error)):
        return None
    cause = ", ".join([ending.last_line(error), *getattr(error, "__notes__", [])])
    if not ray.get(spec.monitor.note_failure.remote(cause)):
        return None
    traceback.print_exception(error)
    message = f"rank {rank} failed twice in the same way, so it is not started again: {cause}"
    return report_fatal(spec, ending.WorkersFailedError(message))


class RayReporter:
    """Sends lines to the driver and metrics to Ray Train."""

    def __init__(self, monitor: Any, world: World) -> None:
        self._monitor, self._world = monitor, world
        self._listener = StopListener(monitor) if world.is_main else None
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
        if ranks.broadcast_json(due, self._world):
            ray.train.report(self._pending)
            self._pending, self._reported_at = {}, time.monotonic()

    def flush(self) -> None:
        """Pass on what no call of `report` was due for; every rank calls it, at the end."""
        if self._pending:
            ray.train.report(self._pending)
            self._pending = {}

    def stop_requested(self) -> bool:
        return self._listener is not None and self._listener.token.requested

    def stopped_as(self) -> str:
        reason = self._listener.token.reason if self._listener is not None else None
        return reason or ending.StopReason.INTERRUPTED

    def save_requested(self) -> bool:
        """Return whether a node has started to drain since the last call."""
        if self._listener is None or not self._listener.save_requested:
            return False
        self._listener.save_requested = False
        self.line("a node is being drained: saving a checkpoint now")
        return True

    def line(self, text: str) -> None:
        self._monitor.add_line.remote(redact(text))

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()


class RemoteConsole:
    """The console of rank 0: sends progress to the driver, which gets metrics anyway."""

    def __init__(self, monitor: Any, total_steps: int, first_step: int) -> None:
        self._monitor, self._sent_at = monitor, time.monotonic()
        monitor.set_plan.remote(total_steps, first_step)

    def on_step(self, step: int) -> None:
        if time.monotonic() - self._sent_at >= PROGRESS_SECONDS:
            self._sent_at = time.monotonic()
            self._monitor.set_step.remote(step)

    def log(self, record: Record) -> None:
        self._monitor.set_step.remote(int(record["step"]))

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Summary, state: str) -> None:
        pass  # the driver ends the bar


class PrometheusSink:
    """Metrics of rank 0 as gauges for Prometheus, labelled with the run's name.

    Every Ray node serves those of its processes as text.
    """

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._make: Any = Gauge
        self._tags = {"run": run}
        self._gauges: dict[str, Any] = {}
        self._set("training", 1.0)

    def log(self, record: Record) -> None:
        """Take one log point; values that are not finite are left out."""
        for name, value in record.items():
            if math.isfinite(value):
                self._set(name, float(value))

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Summary, state: str) -> None:
        self._set("training", 0.0)

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            described = f"{name} of a run, as in its metrics.jsonl"
            self._gauges[name] = self._make(gauge_name(name), described, tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)


def gauge_name(metric: str) -> str:
    """Return the gauge's name for Ray: letters, digits and underscores."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", metric)
