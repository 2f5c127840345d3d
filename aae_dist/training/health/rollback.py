"""What makes a run go back to its last good checkpoint, and how often it may."""

import contextlib
from collections.abc import Callable

from aae_dist.checkpoints.store import CheckpointStore, Saved
from aae_dist.config import RunConfig
from aae_dist.distributed.collectives import run_on_all_ranks, run_on_rank_zero
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError, LaunchError, RanksDifferError, TrainingDivergedError

MAX_DRIFTS = 3
"""Times that a run goes back because ranks drifted apart: after that a machine is broken."""


class GuardError(Exception):
    """The state is not good any more; the same on every rank."""


class UpdatesSkippedError(GuardError):
    """Too many updates in a row had non-finite gradients."""


class RanksDriftedError(GuardError):
    """The ranks no longer hold the same networks: a bit flipped, or a machine computes wrongly."""


def good_checkpoint(store: CheckpointStore, world: World, error: GuardError) -> Saved:
    """Return the newest good checkpoint on every rank; raise what `error` means without one."""

    def newest() -> int | None:
        with contextlib.suppress(CheckpointError, LaunchError, OSError):
            store.wait()  # a save that failed is not there to go back to
        return store.last_good(is_good)

    step = run_on_rank_zero(world, newest)
    if step is None:
        raise without_checkpoint(error) from error
    return run_on_all_ranks(world, lambda: store.load(step))


def is_good(saved: Saved) -> bool:
    """Return whether a checkpoint was not saved amid skipped updates."""
    counters = [group.get("skipped_in_a_row") for group in saved.tensors.values()]
    return not any(int(counter) for counter in counters if counter is not None)


def without_checkpoint(error: GuardError) -> Exception:
    """Return what to raise when there is no checkpoint to go back to."""
    if isinstance(error, UpdatesSkippedError):
        return TrainingDivergedError(
            f"training diverged: {error} (there is no good checkpoint to go back to)"
        )
    return RanksDifferError(
        f"{error}, and there is no checkpoint to go back to. A bit flipped or a machine computes "
        "wrongly: give the same command again, and if it comes again leave that machine out."
    )


class Rollbacks:
    """Decides what a `GuardError` leads to.

    Drifted ranks go back as they were, so the run ends as if nothing had happened. Updates that
    are not finite are repeated once as they were, in case a machine was at fault, and after that
    with learning rates halved each time.
    """

    def __init__(self, config: RunConfig, line: Callable[[str], None]) -> None:
        """Allow `train.max_rollbacks` of them, and a few for drifted ranks."""
        self._left = config.train.max_rollbacks
        self._drifts_left = MAX_DRIFTS
        self._line = line
        self._repeated = False

    def allow(self, error: GuardError) -> float:
        """Return the factor on all learning rates with which to go on from the last good state.

        Raises:
            TrainingDivergedError: no roll back is left.
            RanksDifferError: they drift again and again.
        """
        if isinstance(error, RanksDriftedError):
            if self._drifts_left == 0:
                raise RanksDifferError(
                    f"{error}, after going back {MAX_DRIFTS} times for that. A machine computes "
                    "wrongly: leave it out and give the same command again."
                ) from error
            self._drifts_left -= 1
            self._line(f"{error}; going back to the newest checkpoint")
            return 1.0
        if self._left == 0:
            raise TrainingDivergedError(f"training diverged: {error}") from error
        self._left -= 1
        factor = 0.5 if self._repeated else 1.0
        self._repeated = True
        how = "with learning rates halved" if factor < 1.0 else "as it was"
        self._line(f"{error}; going back to the last good checkpoint, {how}")
        return factor
