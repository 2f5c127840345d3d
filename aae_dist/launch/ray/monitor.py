"""Actor that relays progress from rank 0 to the driver, and stop requests back."""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from aae_dist.launch.ending import StopReason, StopToken, WorkerResult
from aae_dist.utils.text import echo

POLL_SECONDS = 0.5  # how often rank 0 asks for requests to stop


@dataclass
class DriverUpdate:
    """What happened since the driver's last poll."""

    lines: list[str] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    plan: tuple[int, int] | None = None
    """Steps of the whole run and the step that it started from, once rank 0 knows; for a bar."""
    step: int = 0  # the newest step that rank 0 reported between log points
    workers_up: bool = False  # whether all workers run, as far as rank 0 knows
    failed: WorkerResult[Any] | None = None
    """The first user error that a rank met; that run will not continue."""


def print_lines(update: DriverUpdate) -> None:
    """Print the lines of an update."""
    for line in update.lines:
        echo(line)


class Monitor:
    """A tiny actor on the driver's node. Every method returns at once."""

    def __init__(self) -> None:
        self._update = DriverUpdate()
        self._stop: StopReason | None = None
        self._attempt = 0
        self._failures: dict[str, int] = {}

    def add_line(self, text: str) -> None:
        self._update.lines.append(text)

    def add_metrics(self, metrics: dict[str, float]) -> None:
        self._update.metrics.append(metrics)

    def set_plan(self, total_steps: int, first_step: int) -> None:
        self._update.plan, self._update.step = (total_steps, first_step), first_step

    def set_step(self, step: int) -> None:
        self._update.step = step

    def set_workers_up(self, up: bool) -> None:
        self._update.workers_up = up
        self._attempt += up

    def set_failed(self, result: WorkerResult[Any]) -> None:
        self._update.failed = self._update.failed or result

    def note_failure(self, cause: str) -> bool:
        """Return whether an earlier attempt has failed at this step with this error."""
        return self._failures.setdefault(cause, self._attempt) != self._attempt

    def poll(self) -> DriverUpdate:
        """Return the news since the last call; lines and metrics are returned once."""
        update = self._update
        self._update = replace(update, lines=[], metrics=[])
        return update

    def request_stop(self, reason: StopReason = StopReason.INTERRUPTED) -> None:
        self._stop = self._stop or reason

    def stop_requested(self) -> StopReason | None:
        return self._stop


def start_monitor() -> Any:
    """Start the `Monitor` actor on this node, which outlives any worker's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()


class StopListener:
    """Polls the monitor for requests to stop and to save, so that training waits for none.

    A checkpoint is wanted when a node starts to drain: a spot instance that is taken back, a pod
    that Kubernetes moves. Which node does not matter; a superfluous save is cheap.
    """

    def __init__(self, monitor: Any) -> None:
        self.token = StopToken()
        self.save_requested = False
        """Set once for each node that starts to drain; its reader clears it."""
        self._draining: set[str] = set()
        self._monitor = monitor
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="aae-stop-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _poll(self) -> None:
        import ray

        while not self._closed.wait(POLL_SECONDS):
            try:
                reason = ray.get(self._monitor.stop_requested.remote())
                self._check_for_drains(ray)
            except ray.exceptions.ActorUnavailableError:
                continue  # The network failed for a moment.
            except ray.exceptions.RayError:
                return  # The driver has ended, and Ray ends this process with it.
            if reason is not None:
                self.token.request(reason)

    def _check_for_drains(self, ray: Any) -> None:
        # Not public, but what Ray Train's own watcher asks; that one answers ranks by a barrier.
        try:
            draining = set(ray._private.state.state.get_draining_nodes() or ())
        except Exception:  # noqa: BLE001 - no early save then, but stop requests must still arrive
            return
        if draining - self._draining:
            self.save_requested = True
        self._draining |= draining
