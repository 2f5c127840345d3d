"""What the driver hands to Ray Train: the trainer, the workers' function and their task."""

import contextlib
import platform
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.train.torch

from aae_dist.config import RunConfig
from aae_dist.distributed.world import COLLECTIVE_SECONDS
from aae_dist.errors import AaeDistError, LaunchError
from aae_dist.launch.ending import WorkerResult, root_cause
from aae_dist.launch.ray.cluster import ResourceRequest, start_seconds
from aae_dist.training.folder import Outcome
from aae_dist.utils.text import redacted

UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Each starts an actor of its own, which imports Ray Train or Ray Data: 8 s of CPU each.

We give Ray no data sets, and what a job has placed ends with its driver, which is the job here.
"""

# Type checkers see the classes of Train V1, which take other arguments.
api: Any = ray.train


@dataclass(frozen=True)
class WorkerSpec:
    """What the driver sends to each worker."""

    config: str  # `RunConfig` as JSON
    launch_id: str
    token: str  # marker that the driver wrote into the run folder
    monitor: Any  # handle of the `Monitor` actor
    search_path: str  # the driver's working directory, which may hold a prior of the user's own
    driver_shows_progress: bool = False
    """Whether the driver shows a live bar, so that rank 0 writes no lines of progress."""


def train_worker(spec: WorkerSpec) -> WorkerResult[Outcome]:
    """Train as one rank: the train function of Ray Train."""
    try:
        # Imported in the worker alone: driver and controller have no use for the engine.
        from aae_dist.launch.ray.worker import run_rank
    except ImportError as error:
        text = f"a worker on {platform.node()} cannot import aae_dist's engine: {error}. "
        return report_fatal(spec, LaunchError(text + "Install the same packages on all nodes."))
    return run_rank(spec)


def report_fatal(spec: WorkerSpec, error: AaeDistError) -> WorkerResult[Outcome]:
    """Send the driver an error that a restart would meet again, and return it."""
    result = WorkerResult[Outcome](error=error)
    ray.get(spec.monitor.set_failed.remote(result))
    return result


class RestartNotice(ray.train.UserCallback):
    """Sends the driver one line when workers failed and will be started again."""

    def __init__(self, monitor: Any, max_failures: int) -> None:
        self._monitor, self._max_failures, self._failures = monitor, max_failures, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Train's controller calls this.
        self._failures += 1
        self._monitor.set_workers_up.remote(False)
        if self._failures <= self._max_failures:
            rank, cause = root_cause(worker_exceptions)
            self._monitor.add_line.remote(
                f"rank {rank} failed ({cause}); Ray starts the workers again, from the newest "
                f"checkpoint (restart {self._failures} of at most {self._max_failures})"
            )


class MinimalTorchTrainer(api.torch.TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` without the actors that these runs have no use for."""

    def _create_default_callbacks(self) -> list[Any]:
        # A hook of Ray's own: if it is renamed one day, those actors start again, and that is all.
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ not in UNUSED_CALLBACKS]


def warm_up() -> None:
    """Start the actor that Ray Train's controller will ask first.

    Otherwise the controller starts it and waits for its import of Ray Data, twice 5 s.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

        module.get_or_create_autoscaling_coordinator()


def shown_config(config: RunConfig) -> dict[str, Any]:
    """Return a run's entry for Ray's dashboard: its configuration as JSON, without secrets.

    With RAY_TRAIN_ENABLE_STATE_TRACKING=1 Ray validates `train_loop_config` as a JSON object and
    shows it to all who may read its dashboard.
    """
    return dict(redacted(config.model_dump(mode="json")))


def build_trainer(
    config: RunConfig, request: ResourceRequest, spec: WorkerSpec, storage: str
) -> Any:
    """Return the trainer of the run; Ray writes its own files to `storage`.

    What workers need, an actor handle among it, comes with the train function.
    """
    failures = config.launch.max_failures
    # An elastic run times out and decides again for as long as the driver lets it wait.
    waits = int(config.launch.max_wait_minutes * 60 // start_seconds(config.launch))
    return MinimalTorchTrainer(
        partial(train_worker, spec),
        train_loop_config=shown_config(config),
        torch_config=api.torch.TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=api.ScalingConfig(
            num_workers=config.launch.workers,
            elastic_resize_monitor_interval_s=config.launch.resize_seconds,
            use_gpu="GPU" in request.per_worker,
            resources_per_worker=request.per_worker,
        ),
        run_config=api.RunConfig(
            name=config.run.name,
            storage_path=storage,
            # Workers that die while they start count apart from those that die later.
            failure_config=api.FailureConfig(
                max_failures=failures, controller_failure_limit=failures + waits
            ),
            callbacks=[RestartNotice(spec.monitor, failures)],
            logging_config=api.LoggingConfig(log_level="WARNING"),
        ),
    )
