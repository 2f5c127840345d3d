"""Checkpoints of a run in training: every rank calls, rank 0 writes."""

from collections.abc import Callable, Mapping
from typing import Any

from aae_dist.checkpoints.format import Checkpoint, check_metadata
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.errors import CheckpointError, LaunchError
from aae_dist.training.goodput import Goodput
from aae_dist.training.run.folder import RunFolder
from aae_dist.training.run.resume import check_lanes, check_same_run
from aae_dist.training.state import TrainState

SLOW_SECONDS = 30.0
"""Warn about saves slower than this; a healthy save takes seconds."""


class Checkpointer:
    """Saves the state of a run; a save that fails is reported, and training continues."""

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        line: Callable[[str], None],
        metadata: Mapping[str, Any],
        goodput: Goodput,
        last_step: int,
        before_commit: Callable[[], None],
    ) -> None:
        """Write to `store`.

        Args:
            store: of the run's folder.
            world: only rank 0 writes.
            line: shows a line of text.
            metadata: constant during the run: its configuration and its data.
            goodput: stored with each checkpoint.
            last_step: of the run.
            before_commit: called in the background before a checkpoint becomes visible.
        """
        self._store, self._world, self._line = store, world, line
        self._metadata, self._goodput, self._last_step = dict(metadata), goodput, last_step
        self._before_commit = before_commit
        self._skipped = 0

    def save(self, state: TrainState, best: bool, must: bool) -> None:
        """Copy the state and save it in the background.

        Unless it `must`, a save is skipped while another one is under way: the next one is due
        soon, and a slow storage should not slow down training.
        """
        if not self._world.is_main:
            return
        if not must and self._store.is_saving:
            self._skipped += 1
            self._warn_if_slow(state.step)
            return
        goodput = self._goodput.metadata(finished=state.step == self._last_step)
        metadata = {**self._metadata, "state": state.metadata(), "goodput": goodput}
        try:
            self._store.save(state.step, state.tensors(), metadata, best, self._before_commit)
        except (LaunchError, CheckpointError, OSError) as error:
            # The save before this one failed: for good when another writer owns the run now.
            self._store.check_fencing()
            self._line(f"the checkpoint before step {state.step} was not saved: {error}")
            self._store.save(state.step, state.tensors(), metadata, best, self._before_commit)

    def finish(self) -> None:
        """Return when the newest state is saved; raise the save's error on every rank."""
        run_on_rank_zero(self._world, self._store.wait)

    def metrics(self) -> dict[str, float]:
        """Return the cost of saving on rank 0 so far; empty on the other ranks."""
        if not self._world.is_main:
            return {}
        return {
            "checkpoint/skipped": self._skipped,
            "checkpoint/seconds_blocked": round(self._store.seconds_blocked, 3),
            "checkpoint/bytes": self._store.last_bytes,
            "checkpoint/seconds": round(self._store.last_seconds, 3),
        }

    def _warn_if_slow(self, step: int) -> None:
        if self._store.seconds_saving > SLOW_SECONDS:
            self._line(
                f"no checkpoint of step {step}: the save before it has been under way for "
                f"{self._store.seconds_saving:.0f} s, so the storage is slow or stalled; "
                "training continues"
            )


def newest_checkpoint(
    store: CheckpointStore, config: RunConfig, folder: RunFolder, world: World
) -> Checkpoint | None:
    """Load the newest checkpoint that verifies on every rank; None to start from step 0.

    Raises:
        CheckpointError: `run.resume` forbids it, or the checkpoint is of another run.
    """
    loaded: list[Checkpoint] = []

    def find() -> int | None:
        checkpoint = store.newest()
        _check_resume(config.run.resume, checkpoint, folder.uri)
        if checkpoint is None:
            return None
        check_metadata(checkpoint)
        check_same_run(checkpoint.metadata["config"], config, folder.uri)
        check_lanes(checkpoint.metadata["data"]["lanes"], config, folder.uri)
        loaded.append(checkpoint)
        return checkpoint.step

    step = run_on_rank_zero(world, find)
    if step is None:
        return None
    return run_on_all_ranks(world, lambda: loaded[0] if loaded else store.load(step))


def _check_resume(resume: str, checkpoint: Checkpoint | None, run_uri: str) -> None:
    if checkpoint is None and resume == "must":
        raise CheckpointError(
            f"run.resume=must, but {run_uri} has no checkpoint that verifies; check run.storage "
            "and run.name, or use run.resume=auto"
        )
    if checkpoint is not None and resume == "never":
        raise CheckpointError(
            f"run.resume=never, but {run_uri} has a checkpoint of step {checkpoint.step}; take a "
            "new run.name or use run.resume=auto"
        )
