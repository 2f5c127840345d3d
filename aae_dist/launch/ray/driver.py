"""The launcher on a Ray cluster: starts Ray Train, prints progress, passes stops on."""

import contextlib
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.errors import Interrupted, LaunchError
from aae_dist.launch.ending import StopSignals, StopToken, WorkerResult, WorkersFailedError, explain
from aae_dist.launch.ray import cluster
from aae_dist.launch.ray.monitor import DriverUpdate, print_lines, start_monitor
from aae_dist.storage import Storage, is_remote, join, open_storage
from aae_dist.tracking.sinks import LiveBarSink
from aae_dist.training.checkpointer import finished_before
from aae_dist.training.folder import Outcome, write_marker
from aae_dist.utils.text import echo

POLL_SECONDS = 0.25  # how often the driver fetches lines; also the longest delay of one
ERROR_GRACE_SECONDS = 30.0  # how long the other ranks may take to end after one met a user error


def launch_ray(config: RunConfig) -> Outcome:
    """Train the run with Ray Train, on the cluster of RAY_ADDRESS or on one of this machine.

    A run that has finished before is answered without starting Ray. Interrupted when the stop came
    before any worker had started; WorkersFailedError after `launch.max_failures`.
    """
    if (done := finished_before(config)) is not None:
        return done
    cluster.check_machine(config)
    cluster.check_data([config])
    for line in cluster.advice(config):
        echo(line)
    folder = open_storage(join(config.run.storage, config.run.name))
    folder.check_writable()
    token = write_marker(folder)
    with cluster.connected(config), StopSignals() as stop, ray_storage(folder) as storage:
        if not sys.stdout.isatty():
            return run_on_ray(config, token, storage, stop).unwrap()
        with contextlib.closing(DriverProgressBar()) as bar:
            return run_on_ray(config, token, storage, stop, bar, shows_progress=True).unwrap()


def run_on_ray(
    config: RunConfig,
    token: str,
    storage: str,
    stop: StopToken,
    on_update: Callable[[DriverUpdate], None] = print_lines,
    shows_progress: bool = False,
) -> WorkerResult[Outcome]:
    """Run the training on the connected cluster; return the result of rank 0.

    `token` is the marker that the driver wrote into the run folder, `storage` the folder of Ray
    Train's own files. `on_update` is called about four times per second with what is new; if it
    `shows_progress`, no lines of it are wanted.
    """
    # Imported when Ray runs: it takes seconds.
    from aae_dist.launch.ray.train import WorkerSpec, build_trainer, warm_up

    request = cluster.request_of(config)
    cluster.check_request(request)
    echo(f"starting {request} with Ray Train")
    warm_up()
    monitor = start_monitor()
    launch_id, path = secrets.token_hex(8), os.getcwd()
    spec = WorkerSpec(config.model_dump_json(), launch_id, token, monitor, path, shows_progress)
    fit = Fit(build_trainer(config, request, spec, storage).fit)
    return Driver(config, request, monitor, fit, stop, on_update).watch()


@contextlib.contextmanager
def ray_storage(folder: Storage) -> Iterator[str]:
    """Yield Ray Train's own folder: `.ray` in a local run folder, else a temporary one.

    Checkpoints are ours, so all that Ray writes there is a marker file: not worth the credentials
    that its other S3 client would need.
    """
    if not is_remote(folder.uri):
        path = join(folder.uri, ".ray")
        if os.path.islink(path):  # Ray would follow it when writing
            raise LaunchError(
                f"{path}: it is a link, and none is followed when writing. Remove it."
            )
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="aae_dist-ray-") as path:
        yield path


class Fit(threading.Thread):
    """Runs Ray Train or Ray Tune in a thread of its own: the main thread prints and takes signals.

    Off the main thread they also leave SIGINT alone, which they would answer by aborting without a
    checkpoint.
    """

    def __init__(self, fit: Callable[[], Any]) -> None:
        super().__init__(name="ray-fit", daemon=True)
        self._fit = fit
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._fit()
        except BaseException as error:  # noqa: BLE001  # It is raised again in the main thread.
            self.error = error


class Driver:
    """Watches a fit from the main thread: prints lines, passes the stop on, bounds the waits."""

    def __init__(
        self,
        config: RunConfig,
        request: cluster.ResourceRequest,
        monitor: Any,
        fit: Fit,
        stop: StopToken,
        on_update: Callable[[DriverUpdate], None],
    ) -> None:
        self._config, self._monitor, self._fit = config, monitor, fit
        self._stop, self._on_update = stop, on_update
        self._wait = cluster.ResourceWait(request, config.launch.max_wait_minutes)
        self._next_check, self._stop_sent, self._have_trained = 0.0, False, False
        self._error_since: float | None = None

    def watch(self) -> WorkerResult[Outcome]:
        while self._fit.is_alive():
            self._fit.join(POLL_SECONDS)
            if (failed := self._poll()) is not None:
                return failed
        return self._result()

    def _poll(self) -> WorkerResult[Outcome] | None:
        """Pass lines and stops on; return an error that the other ranks will not survive."""
        update = self._take_update()
        if self._stop.requested and not self._stop_sent:
            self._send_stop(update.workers_up)
        now = time.monotonic()
        if not update.workers_up and now >= self._next_check:
            self._next_check = now + 1.0
            self._wait.check()
        if update.failed is None:
            return None
        self._error_since = self._error_since or now
        late = now - self._error_since > ERROR_GRACE_SECONDS
        # With the other ranks dead already, Ray would start them all again without effect.
        return update.failed if late or not update.workers_up else None

    def _send_stop(self, workers_up: bool) -> None:
        import ray

        self._stop_sent = True
        if not workers_up and cluster.is_queued():
            done = "the same command resumes" if self._have_trained else "nothing was trained"
            raise Interrupted(f"stopped as asked while waiting for the cluster; {done}")
        echo("stopping: the workers save a checkpoint first; a second signal ends at once")
        ray.get(self._monitor.request_stop.remote(self._stop.reason))

    def _take_update(self) -> DriverUpdate:
        import ray

        update: DriverUpdate = ray.get(self._monitor.poll.remote())
        self._have_trained |= update.workers_up
        self._on_update(update)
        return update

    def _result(self) -> WorkerResult[Outcome]:
        update = self._take_update()
        if update.failed is not None:
            return update.failed
        if (error := self._fit.error) is not None:
            raise explain(error, self._config.launch.max_failures, logs_folder()) from error
        result: WorkerResult[Outcome] | None = self._fit.result.return_value
        if result is None:
            text = f"Ray Train ended without a result. All workers' logs are in {logs_folder()}."
            raise WorkersFailedError(text)
        return result


class DriverProgressBar:
    """Shows a live bar on the driver's terminal, in the place of `print_lines`."""

    def __init__(self) -> None:
        self._bar: LiveBarSink | None = None
        self._plan: tuple[int, int] | None = None

    def __call__(self, update: DriverUpdate) -> None:
        print_lines(update)
        if update.plan is not None and update.plan != self._plan:
            self.close()
            self._plan, self._bar = update.plan, LiveBarSink(*update.plan)
        if self._bar is not None:
            self._bar.on_step(update.step)
            for metrics in update.metrics:
                self._bar.log(metrics)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close({}, "")


def logs_folder() -> str:
    """Return where Ray keeps the logs of processes, the same path on each node."""
    import ray

    node: Any = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path())
