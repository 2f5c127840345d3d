"""Decisions that depend on a clock or a signal, made by all ranks together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from aae_dist.distributed.world import World, control_group

INTERVAL_SECONDS = 1.0
"""A stop request takes effect after about this long; each round costs one tiny all-reduce."""


@dataclass(frozen=True)
class Decision:
    """Actions of all ranks after this step."""

    stop: bool
    save: bool


class StopConsensus:
    """All-reduces about once per second whether any rank has a request to stop or save.

    The number of steps until the next round is part of the result, so that every rank takes part at
    the same steps although their clocks differ.
    """

    def __init__(
        self, world: World, step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Hold the first round after the next step; `step` of them are done already."""
        self._world = world
        self._clock = clock
        self._next_step = step
        self._last = (step, clock())

    def after(
        self, step: int, wants_stop: Callable[[], bool], wants_save: Callable[[], bool]
    ) -> Decision:
        """Return the common decision after `step`; between rounds neither callback is called."""
        if self._world.size == 1:
            return Decision(stop=wants_stop(), save=wants_save())
        if step < self._next_step:
            return Decision(stop=False, save=False)
        requests = [float(wants_stop()), float(wants_save()), float(self._steps_per_interval(step))]
        result = torch.tensor(requests)
        dist.all_reduce(result, dist.ReduceOp.MAX, group=control_group())
        stop, save, interval = result.tolist()
        self._next_step = step + int(interval)
        return Decision(stop=bool(stop), save=bool(save))

    def _steps_per_interval(self, step: int) -> int:
        (last_step, last_time), now = self._last, self._clock()
        self._last = (step, now)
        seconds = max(now - last_time, 1e-6)
        return min(1000, max(1, round((step - last_step) * INTERVAL_SECONDS / seconds)))
