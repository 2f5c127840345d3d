"""Ray tasks as an `Executor`: what runs in threads elsewhere runs on the nodes of a cluster."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from aae_dist.errors import ConfigError
from aae_dist.launch.failures import WorkersFailedError, last_line
from aae_dist.launch.ray.cluster import ADDRESS, connected, is_local

Result = TypeVar("Result")


class RayExecutor(Executor):
    """Runs each job as a Ray task of one CPU; an error in it is raised as it is."""

    def __init__(self) -> None:
        """Expect that this process is connected to Ray."""
        import ray

        # The error itself, not a RayTaskError that wraps it: callers tell ours by their class.
        self._task = ray.remote(_outcome).options(num_cpus=1, max_retries=3)

    def submit(self, job: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Begin `job(*args, **kwargs)` somewhere in the cluster."""
        done: Future[Result] = Future()
        done.set_running_or_notify_cancel()
        reference = self._task.remote(job, args, kwargs)
        reference.future().add_done_callback(lambda inner: _pass_on(inner, done))
        return done


def _outcome(job: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Exception | None]:
    try:
        return job(*args, **kwargs), None
    except Exception as error:  # noqa: BLE001 - raised in the driver
        return None, error


def _pass_on(inner: "Future[tuple[Any, Exception | None]]", done: "Future[Any]") -> None:
    from ray.exceptions import RayError, RayTaskError

    try:
        value, problem = inner.result()
    except RayTaskError as error:
        problem = error
    except RayError as error:  # a node died, or has no memory left
        problem = WorkersFailedError(
            f"a worker's process failed again and again: {last_line(error)}"
        )
        problem.__cause__ = error
    except Exception as error:  # noqa: BLE001 - raised where the result is asked for
        problem = error
    if problem is not None:
        done.set_exception(problem)
    else:
        done.set_result(value)


@contextlib.contextmanager
def ray_executor() -> Iterator[Executor]:
    """Yield an executor on the cluster of RAY_ADDRESS.

    Raises:
        ConfigError: RAY_ADDRESS is not set: on one machine threads do the same.
        LaunchError: no Ray answers there.
    """
    if is_local():
        raise ConfigError(
            f"--ray needs a cluster: set {ADDRESS} (got {os.environ.get(ADDRESS)!r}), or leave "
            "--ray out to use threads of this process."
        )
    with connected():
        yield RayExecutor()
