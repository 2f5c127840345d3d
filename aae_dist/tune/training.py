"""How a trial trains: in this process, or by several workers of Ray Train."""

import gc
from collections.abc import Callable, Mapping

import torch

from aae_dist.config import RunConfig
from aae_dist.distributed.world import from_environment
from aae_dist.errors import Interrupted
from aae_dist.launch.log import echo
from aae_dist.launch.ray.driver import ray_storage, run_on_ray
from aae_dist.launch.ray.monitor import DriverUpdate, print_lines
from aae_dist.launch.ray.resources import own_device
from aae_dist.launch.shared_storage import write_marker
from aae_dist.launch.stop import StopReason, StopToken
from aae_dist.storage import join, open_storage
from aae_dist.training.reporter import Outcome, RunState
from aae_dist.training.trainer import train
from aae_dist.tune.session import Channel


def train_here(
    prepare: Callable[[], RunConfig],
    launch_id: str,
    pause_every: int | None,
    channel: Channel,
    stop: StopToken,
) -> Outcome:
    """Train a run with one worker, this process.

    Args:
        prepare: makes the trial's run ready and returns its configuration.
        launch_id: one per sweep's start: restarts of its trials take over their locks.
        pause_every: steps after which the training ends, interrupted, to be resumed.
        channel: where log points go.
        stop: when to stop.
    """
    _free_memory()  # of a trial that failed: its error held it until now
    config = prepare()
    torch.set_num_threads(config.launch.cpus_per_worker)
    world = from_environment(own_device(config.train.device))
    try:
        return train(config, world, SessionReporter(channel, stop, pause_every), launch_id)
    finally:
        _free_memory()


def _free_memory() -> None:
    """Free what a training held: the process waits for the next trial next to other ones.

    References go in circles, also through matplotlib's errors, so that only a collection ends them.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def train_on_ray(config: RunConfig, channel: Channel, stop: StopToken) -> Outcome:
    """Train a run with several workers: a Ray Train run of the trial's name, so that it resumes."""

    def on_update(update: DriverUpdate) -> None:
        print_lines(update)
        for metrics in update.metrics:
            channel.report(metrics)

    folder = open_storage(join(config.run.storage, config.run.name))
    token = write_marker(folder)
    try:
        with ray_storage(folder) as storage:
            return run_on_ray(config, token, storage, stop, on_update).unwrap()
    except Interrupted:  # before any worker had started
        state = RunState(stop.reason or StopReason.INTERRUPTED)
        return Outcome(state, 0, {}, folder.uri)


class SessionReporter:
    """The launcher's callbacks for a training in this process."""

    def __init__(self, channel: Channel, stop: StopToken, pause_every: int | None) -> None:
        """Report to `channel`; also stop at multiples of `pause_every`."""
        self._channel, self._stop, self._pause_every = channel, stop, pause_every
        self._paused = False

    def report(self, metrics: Mapping[str, float]) -> None:
        if self._pause_every and metrics["step"] % self._pause_every == 0:
            self._paused = True
        else:
            self._channel.report(metrics)

    def stop_requested(self) -> bool:
        return self._stop.requested or self._paused

    def stopped_as(self) -> str:
        return self._stop.reason or StopReason.INTERRUPTED

    def save_requested(self) -> bool:
        return False  # trials save at intervals

    def line(self, text: str) -> None:
        echo(text)  # to the worker's log, which Ray keeps on its node
