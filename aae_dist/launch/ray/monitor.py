"""The one line between driver and workers: progress lines up, the request to stop down."""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from aae_dist.launch.log import say

POLL_SECONDS = 0.5
"""How often rank 0 asks whether to stop."""

Payload = dict[str, Any]
"""What a rank came to: {"outcome": {...}} or {"error": an error, packed}."""


@dataclass
class News:
    """What happened since the driver last asked."""

    lines: list[str] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    plan: tuple[int, int] | None = None
    """Steps of the whole run and the step that it started from, once rank 0 knows; for a bar."""
    step: int = 0
    """The newest step that rank 0 told of, between log points."""
    workers_up: bool = False
    """Whether all workers run, as far as rank 0 knows."""
    error: Payload | None = None
    """The first mistake of the user's that a rank met; that run will not go on."""


def print_lines(news: News) -> None:
    """Print the lines of the news."""
    for line in news.lines:
        say(line)


class Monitor:
    """A tiny actor on the driver's node. Every method returns at once."""

    def __init__(self) -> None:
        self._news = News()
        self._stop = ""
        self._attempt = 0
        self._failures: dict[str, int] = {}

    def add_line(self, text: str) -> None:
        """Take one line for the driver to print."""
        self._news.lines.append(text)

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Take one log point, for a sweep's trial to report."""
        self._news.metrics.append(metrics)

    def set_plan(self, total_steps: int, first_step: int) -> None:
        """Note how long the run is and where it stands."""
        self._news.plan, self._news.step = (total_steps, first_step), first_step

    def set_step(self, step: int) -> None:
        """Note how far the run is."""
        self._news.step = step

    def set_workers_up(self, up: bool) -> None:
        """Note that the workers started, or that they failed."""
        self._news.workers_up = up
        self._attempt += up

    def set_error(self, payload: Payload) -> None:
        """Note a mistake of the user's; the first one stays."""
        self._news.error = self._news.error or payload

    def note_failure(self, cause: str) -> bool:
        """Return whether an earlier attempt has failed at this step with this error."""
        return self._failures.setdefault(cause, self._attempt) != self._attempt

    def take_news(self) -> News:
        """Return what is new; lines are handed out once."""
        news = self._news
        self._news = replace(news, lines=[], metrics=[])
        return news

    def request_stop(self, stop_as: str = "interrupted") -> None:
        """Ask the training to save a checkpoint and end as `stop_as`."""
        self._stop = self._stop or stop_as

    def stop_requested(self) -> str:
        """Return what to stop as, empty while nobody asked to stop."""
        return self._stop


class StopWatch:
    """Keeps local copies of the requests to stop and to save, so that training waits for none.

    A checkpoint is wanted when a node starts to drain: a spot instance that is taken back, a pod
    that Kubernetes moves. Which node does not matter; a save too many is cheap.
    """

    def __init__(self, monitor: Any) -> None:
        """Start to poll the actor `monitor` in a background thread."""
        self.requested = False
        self.stop_as = "interrupted"
        self.save_requested = False
        """Set once for each node that starts to drain; whoever acts on it clears it."""
        self._draining: set[str] = set()
        self._monitor = monitor
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="aae-stop-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _poll(self) -> None:
        import ray

        while not self._closed.wait(POLL_SECONDS):
            try:
                asked = ray.get(self._monitor.stop_requested.remote())
                self._look_for_drains(ray)
            except ray.exceptions.ActorUnavailableError:
                continue  # The network failed for a moment.
            except ray.exceptions.RayError:
                return  # The driver is gone, and Ray ends this process with it.
            self.stop_as = asked or self.stop_as
            self.requested = bool(asked)

    def _look_for_drains(self, ray: Any) -> None:
        # Not public, but what Ray Train's own watcher asks; that one answers ranks by a barrier.
        try:
            draining = set(ray._private.state.state.get_draining_nodes() or ())
        except Exception:  # noqa: BLE001 - then no early save, but the request to stop must be heard
            return
        if draining - self._draining:
            self.save_requested = True
        self._draining |= draining
