"""The training of one trial in a thread of its own, reported point by point; without torch."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aae_dist.config import RunConfig
from aae_dist.errors import AaeDistError, RunBusyError
from aae_dist.launch.stop import StopReason, StopToken
from aae_dist.training.reporter import Outcome

REPORT_SECONDS = 1.0
"""Least time between two reports of progress that hold no score."""
LOCK_SECONDS = 45.0
"""How long to wait for a run that another process still holds: Ray may still be ending it."""
POLL_SECONDS = 0.2

Metrics = dict[str, float]


@dataclass(frozen=True)
class Ended:
    """How a training ended: exactly one of the three is set."""

    outcome: Outcome | None = None
    mistake: str | None = None
    """An error that another try would meet again, in one line that starts with its class."""
    crash: BaseException | None = None


class Channel:
    """Log points on their way from the training to Tune: the training never runs far ahead."""

    def __init__(self, config: RunConfig, scores: tuple[str, ...], stop: StopToken) -> None:
        """Pass on what holds one of `scores`, and progress now and then."""
        self._train, self._scores, self._stop = config.train, scores, stop
        self._events: queue.Queue[Metrics | Ended] = queue.Queue(maxsize=1)
        self._reported_at = 0.0

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass a log point on, and wait while the one before is not taken."""
        scored = any(name in metrics for name in self._scores)
        if self._is_last(metrics) or not (scored or self._is_time()):
            # The last one goes with the outcome: a scheduler must not cut a finished trial.
            return
        self._reported_at = time.monotonic()
        while not self._stop.requested:
            with contextlib.suppress(queue.Full):
                self._events.put(dict(metrics), timeout=POLL_SECONDS)
                return

    def finish(self, ended: Ended) -> None:
        """Pass the end on."""
        self._events.put(ended)

    def next(self) -> Metrics | Ended:
        """Wait for what comes next."""
        return self._events.get()

    def drain(self) -> Ended:
        """Wait for the end, dropping what comes before it."""
        while True:
            event = self._events.get()
            if isinstance(event, Ended):
                return event

    def _is_time(self) -> bool:
        return time.monotonic() - self._reported_at >= REPORT_SECONDS

    def _is_last(self, metrics: Mapping[str, float]) -> bool:
        steps, epochs = self._train.steps, self._train.epochs
        if steps is not None:
            return metrics["step"] >= steps
        return epochs is not None and metrics["epoch"] >= epochs


class Session:
    """A training under way."""

    def __init__(
        self, train: Callable[[Channel, StopToken], Outcome], channel: Channel, stop: StopToken
    ) -> None:
        """Start `train`, which sends log points to `channel` and polls `stop`."""
        self._train, self._channel, self._stop = train, channel, stop
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Metrics | Ended:
        """Wait for the next log point that is worth a report, or for the end."""
        return self._channel.next()

    def stop(self, reason: StopReason) -> Ended:
        """Request a checkpoint and the end, and wait for it."""
        self._stop.request(reason)
        return self._channel.drain()

    def _run(self) -> None:
        self._channel.finish(self._ended())

    def _ended(self) -> Ended:
        """Train; a run that a process on its way out still holds is tried again."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return Ended(outcome=self._train(self._channel, self._stop))
            except AaeDistError as error:
                if not isinstance(error, RunBusyError) or time.monotonic() > deadline:
                    return Ended(mistake=f"{type(error).__name__}: {error}")
            except BaseException as error:  # noqa: BLE001  # It is raised again where Tune sees it.
                return Ended(crash=error)
            time.sleep(1.0)
