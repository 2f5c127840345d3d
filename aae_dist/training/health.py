"""The health of a run: stops by consensus, and rollbacks."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from aae_dist.checkpoints import Checkpoint, CheckpointStore
from aae_dist.config import RunConfig
from aae_dist.distributed import world as ranks
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError, LaunchError, RanksDifferError, TrainingDivergedError

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
        self._world, self._clock, self._next_step = world, clock, step
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
        dist.all_reduce(result, dist.ReduceOp.MAX, group=ranks.control_group())
        stop, save, interval = result.tolist()
        self._next_step = step + int(interval)
        return Decision(stop=bool(stop), save=bool(save))

    def _steps_per_interval(self, step: int) -> int:
        (last_step, last_time), now = self._last, self._clock()
        self._last = (step, now)
        seconds = max(now - last_time, 1e-6)
        return min(1000, max(1, round((step - last_step) * INTERVAL_SECONDS / seconds)))


MAX_DRIFT_ROLLBACKS = 3
"""Rollbacks because ranks drifted apart: after that many, suspect hardware."""


class RollbackNeeded(Exception):
    """The training state is not healthy any more; raised on every rank."""


class UpdatesSkippedError(RollbackNeeded):
    """Too many consecutive updates had non-finite gradients."""


class RanksDriftedError(RollbackNeeded):
    """The ranks no longer hold the same networks: a bit flipped, or hardware computes wrongly."""


class RollbackPolicy:
    """Decides how to respond to `RollbackNeeded`.

    Ranks that drifted apart roll back unchanged, so the run ends as if nothing had happened.
    Non-finite updates are repeated once unchanged, in case hardware was at fault, and after that
    with learning rates halved each time.
    """

    def __init__(self, config: RunConfig, line: Callable[[str], None]) -> None:
        """Allow `train.max_rollbacks` for non-finite updates, and a few for drifted ranks."""
        self._left, self._drifts_left = config.train.max_rollbacks, MAX_DRIFT_ROLLBACKS
        self._line, self._repeated = line, False

    def lr_factor(self, error: RollbackNeeded) -> float:
        """Count a rollback; return the factor on all learning rates to resume with.

        TrainingDivergedError if no rollback is left, RanksDifferError if ranks keep drifting.
        """
        if isinstance(error, RanksDriftedError):
            if self._drifts_left == 0:
                raise RanksDifferError(
                    f"{error}, and did so after {MAX_DRIFT_ROLLBACKS} rollbacks. Suspect hardware: "
                    "leave that machine out and repeat the command."
                ) from error
            self._drifts_left -= 1
            self._line(f"{error}; rolling back to the newest checkpoint")
            return 1.0
        if self._left == 0:
            raise TrainingDivergedError(f"training diverged: {error}") from error
        self._left -= 1
        factor = 0.5 if self._repeated else 1.0
        self._repeated = True
        how = "with learning rates halved" if factor < 1.0 else "unchanged"
        self._line(f"{error}; rolling back to the last good checkpoint, {how}")
        return factor


def healthy_checkpoint(store: CheckpointStore, world: World, error: RollbackNeeded) -> Checkpoint:
    """Load the newest healthy checkpoint on every rank; without one raise what `error` means."""

    def newest() -> int | None:
        with contextlib.suppress(CheckpointError, LaunchError, OSError):
            store.wait()  # a save that failed is no checkpoint to roll back to
        return store.newest_healthy(is_healthy)

    step = ranks.run_on_rank_zero(world, newest)
    if step is not None:
        return ranks.run_on_all_ranks(world, lambda: store.load(step))
    if isinstance(error, UpdatesSkippedError):
        raise TrainingDivergedError(
            f"training diverged: {error} (there is no good checkpoint to roll back to)"
        ) from error
    raise RanksDifferError(
        f"{error}, and there is no checkpoint to roll back to. A bit flipped or hardware computes "
        "wrongly: repeat the command, and if it happens again leave that machine out."
    ) from error


def is_healthy(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was not saved between skipped updates."""
    counters = [group.get("skipped_in_a_row") for group in checkpoint.tensors.values()]
    return not any(int(counter) for counter in counters if counter is not None)
