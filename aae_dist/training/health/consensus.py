"""Decisions that depend on a clock or a signal, taken by all ranks together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from aae_dist.distributed.collectives import control_group
from aae_dist.distributed.world import World

SECONDS_BETWEEN = 1.0
"""A stop request is acted on after about this long; each agreement costs one tiny all-reduce."""


@dataclass(frozen=True)
class Decision:
    """What all ranks do after this step."""

    stop: bool
    save: bool


class Agreement:
    """Asks all ranks about once a second whether any of them wants to stop or save.

    The number of steps until the next question is part of the answer, so that every rank asks at
    the same steps although their clocks differ.
    """

    def __init__(
        self, world: World, step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Ask for the first time after the next step; `step` of them are done already."""
        self._world = world
        self._clock = clock
        self._next_step = step
        self._last = (step, clock())

    def after(
        self, step: int, wants_stop: Callable[[], bool], wants_save: Callable[[], bool]
    ) -> Decision:
        """Return the common decision after `step`; between questions nobody here is asked."""
        if self._world.size == 1:
            return Decision(stop=wants_stop(), save=wants_save())
        if step < self._next_step:
            return Decision(stop=False, save=False)
        asked = [float(wants_stop()), float(wants_save()), float(self._steps_a_second(step))]
        answer = torch.tensor(asked)
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=control_group())
        stop, save, interval = answer.tolist()
        self._next_step = step + int(interval)
        return Decision(stop=bool(stop), save=bool(save))

    def _steps_a_second(self, step: int) -> int:
        (last_step, last_time), now = self._last, self._clock()
        self._last = (step, now)
        seconds = max(now - last_time, 1e-6)
        return min(1000, max(1, round((step - last_step) * SECONDS_BETWEEN / seconds)))
