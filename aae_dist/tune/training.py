"""How a trial trains: in this process, or by several workers of Ray Train."""

import gc
from collections.abc import Callable, Mapping

import torch

from aae_dist.config import RunConfig
from aae_dist.distributed.world import from_environment
from aae_dist.errors import Interrupted
from aae_dist.launch import shared_storage as nonce
from aae_dist.launch.log import say
from aae_dist.launch.ray.device import own_device
from aae_dist.launch.ray.launch import outcome_of, ray_storage, run_on_ray
from aae_dist.launch.ray.monitor import News
from aae_dist.storage import join, open_storage
from aae_dist.training.outcome import Outcome
from aae_dist.training.trainer import train
from aae_dist.tune.session import Channel, StopFlag


def train_here(
    prepare: Callable[[], RunConfig],
    launch_id: str,
    pause_every: int | None,
    channel: Channel,
    flag: StopFlag,
) -> Outcome:
    """Train a run with one worker, this process.

    Args:
        prepare: makes the trial's run ready and returns its configuration.
        launch_id: one per sweep's start: restarts of its trials take over their locks.
        pause_every: steps after which the training ends, interrupted, to be gone on with.
        channel: where log points go.
        flag: says when to stop.
    """
    _free_memory()  # of a trial that failed: its error held it until now
    config = prepare()
    torch.set_num_threads(config.launch.cpus_per_worker)
    world = from_environment(own_device(config.train.device))
    try:
        return train(config, world, SessionReporter(channel, flag, pause_every), launch_id)
    finally:
        _free_memory()


def _free_memory() -> None:
    """Give back what a training held: the process waits for the next trial beside other ones.

    References go in circles, also through matplotlib's errors, so that only a collection ends them.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def train_on_ray(config: RunConfig, channel: Channel, flag: StopFlag) -> Outcome:
    """Train a run with several workers: a Ray Train run of the trial's name, so that it resumes."""

    def hear(news: News) -> None:
        for line in news.lines:
            say(line)
        for metrics in news.metrics:
            channel.report(metrics)

    folder = open_storage(join(config.run.storage, config.run.name))
    word = nonce.leave(folder)
    try:
        with ray_storage(folder) as storage:
            payload = run_on_ray(config, word, storage, flag, hear)
    except Interrupted:
        return Outcome(flag.stop_as, 0, {}, folder.uri)  # before any worker had started
    return outcome_of(payload)


class SessionReporter:
    """The launcher's ear and mouth for a training in this process."""

    def __init__(self, channel: Channel, flag: StopFlag, pause_every: int | None) -> None:
        """Report to `channel`; stop when `flag` says so, and at multiples of `pause_every`."""
        self._channel, self._flag, self._pause_every = channel, flag, pause_every
        self._paused = False

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass a log point on."""
        if self._pause_every and metrics["step"] % self._pause_every == 0:
            self._paused = True
        else:
            self._channel.report(metrics)

    def stop_requested(self) -> bool:
        """Return whether to stop, or to pause here."""
        return self._flag.requested or self._paused

    def stopped_as(self) -> str:
        """Return pruned if the scheduler asked, interrupted otherwise."""
        return self._flag.stop_as

    def save_requested(self) -> bool:
        """Return False: trials save at intervals."""
        return False

    def line(self, text: str) -> None:
        """Print to the worker's log, which Ray keeps on its node."""
        say(text)
