"""Functions run as tasks on a Ray cluster: as an `Executor`, and with reserved workers."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, TypeVar

from aae_dist.config import RunConfig
from aae_dist.errors import AaeDistError, ConfigError
from aae_dist.launch.ending import WorkerResult, WorkersFailedError, last_line
from aae_dist.launch.ray import cluster
from aae_dist.utils.text import echo

POLL_SECONDS = 1.0
NUM_RETRIES = 3
T = TypeVar("T")


class RayExecutor(Executor):
    """Runs each call as a Ray task of a process that is connected to Ray already.

    An error that the function raises is raised by its future. A task whose process or node dies is
    started again, `max_retries` times.
    """

    def __init__(self, max_retries: int = NUM_RETRIES, **options: Any) -> None:
        import ray

        self._ray: Any = ray
        self._task: Any = ray.remote(_call).options(max_retries=max_retries, **options)
        self._running: dict[Future[Any], Any] = {}

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        reference = self._task.remote(os.getcwd(), function, args, kwargs)
        self._running[done] = reference
        reference.future().add_done_callback(lambda inner: self._finish(inner, done))
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel the running tasks if asked to; Ray ends the others with this process."""
        if cancel_futures:
            for reference in list(self._running.values()):
                self._ray.cancel(reference)

    def _finish(self, inner: "Future[WorkerResult[T]]", done: "Future[T]") -> None:
        self._running.pop(done, None)
        try:
            done.set_result(result_of(inner))
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            done.set_exception(error)


def _call(search_path: str, function: Callable[..., T], args: Any, kwargs: Any) -> WorkerResult[T]:
    """Run one call in a worker; the driver's directory may hold a prior of the user's own."""
    if search_path not in sys.path:
        sys.path.append(search_path)
    try:
        return WorkerResult(value=function(*args, **kwargs))
    except AaeDistError as error:
        return WorkerResult(error=error)


def result_of(inner: "Future[WorkerResult[T]]") -> T:
    """Return the value of a task, or raise its error; WorkersFailedError when it died too often."""
    from ray.exceptions import RayError, RayTaskError

    try:
        result = inner.result()
    except RayTaskError:
        raise  # what the function itself raised: an internal error
    except RayError as error:  # a node died, or has no memory left
        text = "a worker's process failed more often than launch.max_failures allows"
        raise WorkersFailedError(f"{text}: {last_line(error)}") from error
    return result.unwrap()


@contextlib.contextmanager
def ray_executor() -> Iterator[Executor]:
    """Yield an executor on the cluster of RAY_ADDRESS, which must be set; one CPU per task."""
    if cluster.is_local():
        raise ConfigError(
            f"--ray needs a cluster: set {cluster.ADDRESS} (got "
            f"{os.environ.get(cluster.ADDRESS)!r}), or leave --ray out to use threads of this "
            "process."
        )
    with cluster.connected():
        yield RayExecutor(num_cpus=1)


def run_tasks(
    config: RunConfig, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]
) -> Iterator[T]:
    """Yield what `function(*call)` returns for each call, as they end; `launch.workers` at once.

    A task whose process or node dies is started again, up to `launch.max_failures` times. The
    workers must be able to import the module of `function`. What a task raises is raised, and the
    others are cancelled; LaunchError when there is no room for the workers.
    """
    cluster.check_machine(config)
    with cluster.connected(config):
        request = cluster.request_of(config)
        cluster.check_request(request)
        echo(f"starting {request} with Ray")
        yield from _run(config, request, function, calls)


def _run(
    config: RunConfig,
    request: cluster.ResourceRequest,
    function: Callable[..., T],
    calls: Sequence[Any],
) -> Iterator[T]:
    # Imported when Ray runs: these import it, which takes seconds.
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    room = cluster.ResourceWait(request, config.launch.max_wait_minutes)
    group = placement_group([request.per_worker] * request.workers, strategy="PACK")
    executor = RayExecutor(
        config.launch.max_failures,
        num_cpus=request.per_worker["CPU"],
        num_gpus=request.per_worker.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    waiting = list(reversed(calls))
    running: set[Future[T]] = set()
    try:
        while not group.wait(POLL_SECONDS):
            room.check()
        while waiting or running:
            while waiting and len(running) < request.workers:
                running.add(executor.submit(function, *waiting.pop()))
            done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            yield from (future.result() for future in done)
            # A node that dies takes its part of the group with it: then room is waited for again.
            room.check()
    finally:
        executor.shutdown(cancel_futures=True)
        remove_placement_group(group)
