"""The `TorchTrainer` of a run."""

import contextlib
from functools import partial
from typing import Any

import ray.train
import ray.train.torch

from aae_dist.config import RunConfig
from aae_dist.config.redaction import redacted
from aae_dist.distributed.collectives import COLLECTIVE_SECONDS
from aae_dist.launch.ray import cluster as ray_cluster
from aae_dist.launch.ray.entry import RestartNotice, Task, train_worker
from aae_dist.launch.ray.resources import Demand

UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Each starts an actor of its own, which imports Ray Train or Ray Data: 8 s of CPU apiece.

We give Ray no data sets, and what a job has placed goes with its driver, which is the job here.
"""

# Type checkers see the classes of Train V1, which take other arguments.
api: Any = ray.train


class LeanTrainer(api.torch.TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` without the actors that these runs have no use for."""

    def _create_default_callbacks(self) -> list[Any]:
        # A hook of Ray's own: if it is renamed one day, those actors start again, and that is all.
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ not in UNUSED_CALLBACKS]


def warm_up() -> None:
    """Start the actor that Ray Train's controller will ask first.

    Otherwise the controller starts it and waits for its import of Ray Data, twice 5 s, in vain.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

        module.get_or_create_autoscaling_coordinator()


def build_trainer(config: RunConfig, demand: Demand, task: Task, storage: str) -> Any:
    """Return the trainer of the run; Ray writes its own files to `storage`.

    With RAY_TRAIN_ENABLE_STATE_TRACKING=1 Ray validates `train_loop_config` as a JSON object and
    shows it on its dashboard to all who may read that, so it holds the configuration without
    secrets. What workers need, an actor handle among it, comes with the train function.
    """
    failures = config.launch.max_failures
    # An elastic run times out and decides anew for as long as the driver lets it wait.
    waits = int(config.launch.max_wait_minutes * 60 // ray_cluster.start_seconds(config.launch))
    return LeanTrainer(
        partial(train_worker, task),
        train_loop_config=redacted(config.model_dump(mode="json")),
        torch_config=api.torch.TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=api.ScalingConfig(
            num_workers=config.launch.workers,
            elastic_resize_monitor_interval_s=config.launch.resize_seconds,
            use_gpu="GPU" in demand.per_worker,
            resources_per_worker=demand.per_worker,
        ),
        run_config=api.RunConfig(
            name=config.run.name,
            storage_path=storage,
            # Workers that die while they start count apart from those that die later.
            failure_config=api.FailureConfig(
                max_failures=failures, controller_failure_limit=failures + waits
            ),
            callbacks=[RestartNotice(task.monitor, failures)],
            logging_config=api.LoggingConfig(log_level="WARNING"),
        ),
    )
