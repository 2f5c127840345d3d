"""Runs of `aae_dist.train` in processes of their own: to be killed, or interrupting themselves."""

import os
import time
from collections.abc import Mapping
from multiprocessing.queues import Queue
from pathlib import Path

from helpers.arrays import digits, small

import aae_dist


class Slow(aae_dist.Callback):
    def on_log(self, metrics: Mapping[str, float]) -> None:
        time.sleep(0.3)


def train_slowly(storage: Path) -> None:
    config = small(storage, run={"name": "killed"}, checkpoint={"every_steps": 4})
    aae_dist.train(config, digits(), [Slow()])


class Interrupt(aae_dist.Callback):
    def __init__(self, number: int) -> None:
        self.number = number

    def on_log(self, metrics: Mapping[str, float]) -> None:
        os.kill(os.getpid(), self.number)


def interrupt_itself(storage: Path, number: int, ends: "Queue[tuple[str, int]]") -> None:
    config = small(storage, run={"name": "stopped"})
    result = aae_dist.train(config, digits(200), [Interrupt(number)], progress=False)
    ends.put((result.state, result.step))
