"""Rollback policy: which errors trigger a rollback, and how many are allowed."""

import contextlib
from collections.abc import Callable

from aae_dist.checkpoints.format import Checkpoint
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.errors import CheckpointError, LaunchError, RanksDifferError, TrainingDivergedError

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
        self._left = config.train.max_rollbacks
        self._drifts_left = MAX_DRIFT_ROLLBACKS
        self._line = line
        self._repeated = False

    def lr_factor(self, error: RollbackNeeded) -> float:
        """Count a rollback; return the factor on all learning rates to resume with.

        Raises:
            TrainingDivergedError: no rollback is left.
            RanksDifferError: the ranks keep drifting apart.
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

    step = run_on_rank_zero(world, newest)
    if step is None:
        raise _without_checkpoint(error) from error
    return run_on_all_ranks(world, lambda: store.load(step))


def is_healthy(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was not saved between skipped updates."""
    counters = [group.get("skipped_in_a_row") for group in checkpoint.tensors.values()]
    return not any(int(counter) for counter in counters if counter is not None)


def _without_checkpoint(error: RollbackNeeded) -> Exception:
    if isinstance(error, UpdatesSkippedError):
        return TrainingDivergedError(
            f"training diverged: {error} (there is no good checkpoint to roll back to)"
        )
    return RanksDifferError(
        f"{error}, and there is no checkpoint to roll back to. A bit flipped or hardware computes "
        "wrongly: repeat the command, and if it happens again leave that machine out."
    )
