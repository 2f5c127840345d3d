"""What the driver does while Ray Train runs."""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from aae_dist.config import RunConfig
from aae_dist.errors import Interrupted
from aae_dist.launch.failures import WorkersFailedError, explain
from aae_dist.launch.log import say
from aae_dist.launch.ray.monitor import News, Payload
from aae_dist.launch.ray.resources import Demand
from aae_dist.launch.ray.wait import Patience, is_queued
from aae_dist.launch.stop import StopRequest

LOOK_SECONDS = 0.25
"""How often the driver fetches lines; also the longest delay of one."""
ERROR_GRACE_SECONDS = 30.0
"""How long the other ranks may take to end after one met a mistake of the user's."""


class Fit(threading.Thread):
    """Runs Ray Train or Ray Tune in a thread of its own: the main thread prints and takes signals.

    Off the main thread they also leave SIGINT alone, which they would answer by aborting without a
    checkpoint.
    """

    def __init__(self, fit: Callable[[], Any]) -> None:
        """Run `fit`; start at once."""
        super().__init__(name="ray-fit", daemon=True)
        self._fit = fit
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Run to the end and keep what came of it: a result or an exception."""
        try:
            self.result = self._fit()
        except BaseException as error:  # noqa: BLE001  # It is raised again in the main thread.
            self.error = error


class Driver:
    """Watches a fit from the main thread: prints lines, passes the stop on, bounds the waits."""

    def __init__(
        self,
        config: RunConfig,
        demand: Demand,
        monitor: Any,
        fit: Fit,
        signals: StopRequest,
        hear: Callable[[News], None],
    ) -> None:
        """Watch `fit`, whose workers talk to the actor `monitor`; `hear` gets what is new."""
        self._config = config
        self._monitor = monitor
        self._fit = fit
        self._signals, self._hear = signals, hear
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
        # With the other ranks dead already, Ray would start them all again in vain.
        return news.error if late or not news.workers_up else None

    def _send_stop(self, workers_up: bool) -> None:
        self._stop_sent = True
        if not workers_up and is_queued():
            raise Interrupted("stopped as asked while waiting for the cluster; nothing was trained")
        say("stopping: the workers save a checkpoint first; a second signal ends at once")
        ray.get(self._monitor.request_stop.remote(self._signals.stop_as))

    def _take_news(self) -> News:
        news: News = ray.get(self._monitor.take_news.remote())
        self._hear(news)
        return news

    def _end(self) -> Payload:
        news = self._take_news()
        if news.error is not None:
            return news.error
        if self._fit.error is not None:
            raise explain(
                self._fit.error, self._config.launch.max_failures, logs_folder()
            ) from self._fit.error
        payload: Payload | None = self._fit.result.return_value
        if payload is None:
            raise WorkersFailedError(
                f"Ray Train ended without a result. All workers' logs are in {logs_folder()}."
            )
        return payload


def logs_folder() -> str:
    """Return where Ray keeps the logs of processes, the same path on each node."""
    node: Any = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path())
