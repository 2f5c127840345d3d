"""The training of one trial in a thread of its own, reported point by point."""

import contextlib
import gc
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from aae_dist.config import RunConfig
from aae_dist.distributed.world import from_environment
from aae_dist.errors import AaeDistError, RunBusyError
from aae_dist.launch.ending import StopReason, StopToken
from aae_dist.launch.local import LocalReporter
from aae_dist.launch.ray.cluster import own_device
from aae_dist.training import folder, trainer

REPORT_SECONDS = 1.0  # least time between two reports of progress that hold no score
LOCK_SECONDS = 45.0
"""How long to wait for a run that another process still holds, which may be about to end."""
POLL_SECONDS = 0.2

Metrics = dict[str, float]


@dataclass(frozen=True)
class Ended:
    """How a training ended: exactly one of the three is set."""

    outcome: folder.Outcome | None = None
    mistake: str | None = None
    """An error that another try would meet again, in one line that starts with its class."""
    crash: BaseException | None = None


class Channel:
    """Log points on their way to the launcher: the training never runs far ahead."""

    def __init__(self, config: RunConfig, scores: tuple[str, ...], stop: StopToken) -> None:
        self._train, self._scores, self._stop = config.train, scores, stop
        self._events: queue.Queue[Metrics | Ended] = queue.Queue(maxsize=1)
        self._reported_at = 0.0

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass a log point on, and wait while the one before is not taken."""
        scored = any(name in metrics for name in self._scores)
        is_time = time.monotonic() - self._reported_at >= REPORT_SECONDS
        if self._is_last(metrics) or not (scored or is_time):
            # The last one goes with the outcome: a scheduler must not cut a finished trial.
            return
        self._reported_at = time.monotonic()
        while not self._stop.requested:
            with contextlib.suppress(queue.Full):
                self._events.put(dict(metrics), timeout=POLL_SECONDS)
                return

    def finish(self, ended: Ended) -> None:
        self._events.put(ended)

    def next(self) -> Metrics | Ended:
        return self._events.get()

    def drain(self) -> Ended:
        while not isinstance(event := self._events.get(), Ended):
            pass
        return event

    def _is_last(self, metrics: Mapping[str, float]) -> bool:
        steps, epochs = self._train.steps, self._train.epochs
        if steps is not None:
            return metrics["step"] >= steps
        return epochs is not None and metrics["epoch"] >= epochs


class Session:
    """A training under way."""

    def __init__(
        self,
        train: Callable[[Channel, StopToken], folder.Outcome],
        channel: Channel,
        stop: StopToken,
    ) -> None:
        self._train, self._channel, self._stop = train, channel, stop
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Metrics | Ended:
        return self._channel.next()

    def stop(self, reason: StopReason) -> Ended:
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
            except BaseException as error:  # noqa: BLE001  # It is raised again where the launcher sees it.
                return Ended(crash=error)
            time.sleep(1.0)


def train_here(
    prepare: Callable[[], RunConfig],
    launch_id: str,
    pause_every: int | None,
    channel: Channel,
    stop: StopToken,
    device_of: Callable[[str], str] = own_device,
) -> folder.Outcome:
    """Train a run with one worker, this process.

    `prepare` makes the trial's run ready and returns its configuration. Restarts of a sweep's
    trials take over their locks by `launch_id`. After `pause_every` steps the training ends,
    interrupted, to be resumed. `device_of` maps train.device to this process.
    """
    _free_memory()  # of a trial that failed: its error held it until now
    config = prepare()
    torch.set_num_threads(config.launch.cpus)
    world = from_environment(device_of(config.train.device))
    try:
        return trainer.train(config, world, SessionReporter(channel, stop, pause_every), launch_id)
    finally:
        _free_memory()


def _free_memory() -> None:
    """Free what a training held: the process waits for the next trial next to other ones.

    References go in circles, also through matplotlib's errors, so that only a collection ends them.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class SessionReporter(LocalReporter):
    """Reports to a channel; also stops at multiples of `pause_every`. Trials save at intervals.

    Lines go to the log of the process.
    """

    def __init__(self, channel: Channel, stop: StopToken, pause_every: int | None) -> None:
        super().__init__(stop)
        self._channel, self._pause_every, self._paused = channel, pause_every, False

    def report(self, metrics: Mapping[str, float]) -> None:
        if self._pause_every and metrics["step"] % self._pause_every == 0:
            self._paused = True
        else:
            self._channel.report(metrics)

    def stop_requested(self) -> bool:
        return super().stop_requested() or self._paused
