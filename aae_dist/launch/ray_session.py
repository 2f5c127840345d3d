"""The training of one trial by several workers of Ray Train, driven from the trial's process."""

import threading

from aae_dist.config import RunConfig
from aae_dist.errors import Interrupted
from aae_dist.launch import nonce
from aae_dist.launch.ray_monitor import News
from aae_dist.launch.ray_train import outcome_of, ray_storage, run_on_ray
from aae_dist.launch.say import say
from aae_dist.launch.trial_session import Channel, Ended, Metrics, StopFlag, ended_of
from aae_dist.storage import join, open_storage
from aae_dist.training.outcome import Outcome


class RaySession:
    """A trial of several workers: a Ray Train run of the trial's name, so that it resumes."""

    def __init__(self, config: RunConfig, channel: Channel, flag: StopFlag) -> None:
        """Start to train; log points go to `channel`, `flag` says when to stop."""
        self._config, self._channel, self._flag = config, channel, flag
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Metrics | Ended:
        """Wait for the next log point that is worth a report, or for the end."""
        return self._channel.next()

    def stop(self, stop_as: str) -> Ended:
        """Ask for a checkpoint and the end, and wait for it."""
        self._flag.ask(stop_as)
        return self._channel.drain()

    def _run(self) -> None:
        self._channel.end(ended_of(self._train))

    def _train(self) -> Outcome:
        folder = open_storage(join(self._config.run.storage, self._config.run.name))
        word = nonce.leave(folder)
        try:
            with ray_storage(folder) as storage:
                payload = run_on_ray(self._config, word, storage, self._flag, self._hear)
        except Interrupted:
            return Outcome(self._flag.stop_as, 0, {}, folder.uri)  # before any worker had started
        return outcome_of(payload)

    def _hear(self, news: News) -> None:
        for line in news.lines:
            say(line)
        for metrics in news.metrics:
            self._channel.report(metrics)
