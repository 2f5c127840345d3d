"""The launcher on a Ray cluster: Ray Train starts, places and restarts the workers."""

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.errors import Interrupted, LaunchError, by_name
from aae_dist.launch import nonce, ray_cluster
from aae_dist.launch.ray_demand import Demand
from aae_dist.launch.ray_failures import explain
from aae_dist.launch.ray_monitor import Monitor, News, Payload
from aae_dist.launch.signals import StopSignals
from aae_dist.storage import Storage, is_remote, join, open_storage
from aae_dist.training.outcome import Outcome
from aae_dist.training.resume import finished_before

LOOK_SECONDS = 0.25
"""How often the driver fetches lines; also the longest delay of one."""
ERROR_GRACE_SECONDS = 30.0
"""How long the other ranks may take to end after one met a mistake of the user's."""
PROCESS_GROUP_SECONDS = 600


def launch_ray(config: RunConfig) -> Outcome:
    """Train the run with Ray Train, on the cluster of RAY_ADDRESS or on one of this machine.

    A run that has finished before is answered without starting Ray.

    Raises:
        Interrupted: the stop came before any worker had started.
        AaeDistError: the user's mistake, in one line.
        WorkersFailedError: workers failed more often than `launch.max_failures` allows.
    """
    done = finished_before(config)
    if done is not None:
        return done
    ray_cluster.check_before_start(config)
    for line in ray_cluster.advice(config):
        say(line)
    folder = open_storage(join(config.run.storage, config.run.name))
    folder.check_writable()
    word = nonce.leave(folder)
    with ray_cluster.connected(config), StopSignals() as signals, ray_storage(folder) as storage:
        demand = ray_cluster.demand_of(config)
        ray_cluster.check_demand(demand)
        say(f"starting {demand} with Ray Train for {folder.uri}")
        monitor = start_monitor()
        fit = Fit(build_trainer(config, demand, monitor, word, storage))
        payload: Payload = Driver(config, demand, monitor, fit, signals).watch()
    return outcome_of(payload)


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    print(line, flush=True)


def outcome_of(payload: Payload) -> Outcome:
    """Return what the workers returned, or raise the error that they met."""
    if "error" in payload:
        raise by_name(payload["error"])(payload["message"])
    return Outcome(**payload["outcome"])


@contextlib.contextmanager
def ray_storage(folder: Storage) -> Iterator[str]:
    """Yield Ray Train's own folder: `.ray` in a local run folder, else a temporary one.

    Checkpoints are ours, so all that Ray writes there is a marker file: not worth the credentials
    that its other S3 client would need.
    """
    if not is_remote(folder.uri):
        yield join(folder.uri, ".ray")
        return
    with tempfile.TemporaryDirectory(prefix="aae_dist-ray-") as path:
        yield path


def start_monitor() -> Any:
    """Start the `Monitor` actor on this node, which outlives any worker's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()


def build_trainer(config: RunConfig, demand: Demand, monitor: Any, word: str, storage: str) -> Any:
    """Return the `TorchTrainer` of the run."""
    import ray.train
    import ray.train.torch

    from aae_dist.launch.ray_entry import RestartNotice, Task, train_worker

    # Type checkers see the classes of Train V1, which take other arguments.
    api: Any = ray.train
    failures = config.launch.max_failures
    task = Task(config.model_dump_json(), secrets.token_hex(8), word, monitor, os.getcwd())
    return api.torch.TorchTrainer(
        train_worker,
        train_loop_config=task,
        torch_config=api.torch.TorchConfig(timeout_s=PROCESS_GROUP_SECONDS),
        scaling_config=api.ScalingConfig(
            num_workers=demand.workers,
            use_gpu="GPU" in demand.per_worker,
            resources_per_worker=demand.per_worker,
        ),
        run_config=api.RunConfig(
            name=config.run.name,
            storage_path=storage,
            # Workers that die while they start count apart from those that die later.
            failure_config=api.FailureConfig(
                max_failures=failures, controller_failure_limit=failures
            ),
            callbacks=[RestartNotice(monitor, failures)],
            logging_config=api.LoggingConfig(log_level="WARNING"),
        ),
    )


class Fit(threading.Thread):
    """`trainer.fit()` in a thread of its own: the main thread prints and takes signals.

    Off the main thread Ray Train also leaves SIGINT alone, which it would answer by aborting
    without a checkpoint.
    """

    def __init__(self, trainer: Any) -> None:
        """Run `trainer`; start at once."""
        super().__init__(name="ray-train-fit", daemon=True)
        self._trainer = trainer
        self.payload: Payload | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Run to the end and keep rank 0's return value, or the exception."""
        try:
            self.payload = self._trainer.fit().return_value
        except BaseException as error:  # noqa: BLE001  # It is raised again in the main thread.
            self.error = error


class Driver:
    """Watches a fit from the main thread: prints lines, passes the stop on, bounds the waits."""

    def __init__(
        self, config: RunConfig, demand: Demand, monitor: Any, fit: Fit, signals: StopSignals
    ) -> None:
        """Watch `fit` through the actor `monitor`."""
        from aae_dist.launch.ray_wait import Patience

        self._config = config
        self._monitor = monitor
        self._fit = fit
        self._signals = signals
        self._patience = Patience(demand, config.launch.max_wait_minutes, say)
        self._next_check = 0.0
        self._stop_sent = False
        self._error_since: float | None = None

    def watch(self) -> Payload:
        """Return what the workers returned, after printing all their lines."""
        while self._fit.is_alive():
            self._fit.join(LOOK_SECONDS)
            error = self._look()
            if error is not None:
                return error
        return self._end()

    def _look(self) -> Payload | None:
        """Pass lines and signals on; return an error that the other ranks will not survive."""
        news = self._take_news()
        if self._signals.requested and not self._stop_sent:
            self._send_stop(news.workers_up)
        now = time.monotonic()
        if not news.workers_up and now >= self._next_check:
            self._next_check = now + 1.0
            self._patience.check()
        if news.error is None:
            return None
        self._error_since = self._error_since or now
        late = now - self._error_since > ERROR_GRACE_SECONDS
        return news.error if late else None

    def _send_stop(self, workers_up: bool) -> None:
        import ray

        from aae_dist.launch.ray_wait import is_queued

        self._stop_sent = True
        if not workers_up and is_queued():
            raise Interrupted("stopped as asked while waiting for the cluster; nothing was trained")
        say("stopping: the workers save a checkpoint first; a second signal ends at once")
        ray.get(self._monitor.request_stop.remote())

    def _take_news(self) -> News:
        import ray

        news: News = ray.get(self._monitor.take_news.remote())
        for line in news.lines:
            say(line)
        return news

    def _end(self) -> Payload:
        news = self._take_news()
        if news.error is not None:
            return news.error
        if self._fit.error is not None:
            raise explain(
                self._fit.error, self._config.launch.max_failures, logs_folder()
            ) from self._fit.error
        if self._fit.payload is None:
            raise LaunchError("Ray Train ended without a result. Look into its workers' logs.")
        return self._fit.payload


def logs_folder() -> str:
    """Return where Ray keeps the logs of processes, the same path on each node."""
    import ray

    node: Any = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path())
