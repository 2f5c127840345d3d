"""What the driver hands to Ray Train: light to import, since driver and controller never train."""

import platform
from dataclasses import dataclass
from typing import Any

import ray.train

from aae_dist.errors import AaeDistError, LaunchError, packed
from aae_dist.launch.failures import root_cause
from aae_dist.launch.ray.monitor import Payload


@dataclass(frozen=True)
class Task:
    """What the driver tells each worker."""

    config: str
    """`RunConfig` as JSON."""
    launch_id: str
    nonce: str
    """The word that the driver left in the run folder."""
    monitor: Any
    """Handle of the `Monitor` actor."""
    search_path: str
    """The driver's working directory, where a prior of the user's own may lie."""
    has_screen: bool = False
    """Whether the driver shows a live bar, so that rank 0 writes no lines of progress."""


def train_worker(task: Task) -> Payload:
    """Train as one rank: the train function of Ray Train."""
    try:
        from aae_dist.launch.ray.worker import run_rank
    except ImportError as error:
        return _cannot_import(task, error)
    return run_rank(task)


def _cannot_import(task: Task, error: ImportError) -> Payload:
    message = f"a worker on {platform.node()} cannot import aae_dist's engine: {error}. "
    message += "Install the same packages on all nodes."
    return give_up(task, LaunchError(message))


def give_up(task: Task, error: AaeDistError) -> Payload:
    """Tell the driver of an error that another start would meet again, and return it."""
    payload: Payload = {"error": packed(error)}
    ray.get(task.monitor.set_error.remote(payload))
    return payload


class RestartNotice(ray.train.UserCallback):
    """Tells the driver in one line that workers failed and will be started again."""

    def __init__(self, monitor: Any, max_failures: int) -> None:
        """Send to the actor `monitor`; Ray gives up after `max_failures` restarts."""
        self._monitor = monitor
        self._max_failures = max_failures
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count the failure and send the line; Train's controller calls this."""
        self._failures += 1
        self._monitor.set_workers_up.remote(False)
        if self._failures <= self._max_failures:
            rank, cause = root_cause(worker_exceptions)
            self._monitor.add_line.remote(
                f"rank {rank} failed ({cause}); Ray starts the workers again, from the newest "
                f"checkpoint (restart {self._failures} of at most {self._max_failures})"
            )
