"""Checkpoints of a run as the loop and its start see them: every rank calls, rank 0 writes."""

from collections.abc import Callable, Mapping
from typing import Any

from aae_dist.checkpoints.metadata import check_documents
from aae_dist.checkpoints.store import CheckpointStore, Saved
from aae_dist.config import RunConfig
from aae_dist.distributed.collectives import run_on_all_ranks, run_on_rank_zero
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError, LaunchError
from aae_dist.training.run.folder import RunFolder
from aae_dist.training.run.resume import check_lanes, check_same_run
from aae_dist.training.state import TrainState

STALLED_SECONDS = 30.0
"""A save that takes longer than this is told of; a healthy one takes seconds."""


class Saver:
    """Saves the run's state; a save that fails is reported, and training goes on to the next."""

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        documents: Mapping[str, Any],
        still_ours: Callable[[], None],
        line: Callable[[str], None],
        goodput: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Write to `store`.

        Args:
            store: of the run's folder.
            world: only rank 0 writes.
            documents: what does not change during the run: its configuration and its data.
            still_ours: raises when another process has taken the run over.
            line: shows a line of text.
            goodput: returns where the time of the run went so far.
        """
        self._goodput = goodput
        self._skipped = 0
        self._store, self._world, self._line = store, world, line
        self._documents, self._still_ours = dict(documents), still_ours

    def save(self, state: TrainState, best: bool, must: bool) -> None:
        """Copy the state and save it in the background.

        Unless it `must`, it does not wait for a save that is still under way: the next one is due
        soon, and a slow storage should not slow the training.
        """
        if not self._world.is_main:
            return
        if not must and self._store.is_saving:
            self._skipped += 1
            self._say_if_stalled(state.step)
            return
        documents = {**self._documents, "state": state.document(), "goodput": self._goodput()}
        try:
            self._store.save(state.step, state.tensors(), documents, best)
        except (LaunchError, CheckpointError, OSError) as error:
            self._still_ours()
            self._line(f"the checkpoint before step {state.step} was not saved: {error}")
            self._store.save(state.step, state.tensors(), documents, best)

    def finish(self) -> None:
        """Return when the newest state is saved; raise why it is not, on every rank."""
        run_on_rank_zero(self._world, self._store.wait)

    def _say_if_stalled(self, step: int) -> None:
        if self._store.seconds_saving > STALLED_SECONDS:
            self._line(
                f"no checkpoint of step {step}: the save before it has been under way for "
                f"{self._store.seconds_saving:.0f} s, so the storage is slow or stalled; "
                "training goes on"
            )

    def costs(self) -> dict[str, float]:
        """Return what saving has cost rank 0 so far; nothing on the other ranks."""
        if not self._world.is_main:
            return {}
        return {
            "checkpoint/skipped": self._skipped,
            "checkpoint/seconds_blocked": round(self._store.seconds_blocked, 3),
            "checkpoint/bytes": self._store.last_bytes,
            "checkpoint/seconds": round(self._store.last_seconds, 3),
        }


def newest_checkpoint(
    store: CheckpointStore, config: RunConfig, folder: RunFolder, world: World
) -> Saved | None:
    """Return the newest checkpoint that verifies, on every rank; None to start from step 0.

    Raises:
        CheckpointError: `run.resume` forbids what was found, or the run was another one.
    """
    found: list[Saved] = []

    def look() -> int | None:
        saved = store.newest()
        if saved is None:
            if config.run.resume == "must":
                raise CheckpointError(
                    f"run.resume=must, but {folder.uri} has no checkpoint that verifies; check "
                    "run.storage and run.name, or use run.resume=auto"
                )
            return None
        if config.run.resume == "never":
            raise CheckpointError(
                f"run.resume=never, but {folder.uri} has a checkpoint of step {saved.step}; "
                "take a new run.name or use run.resume=auto"
            )
        check_documents(saved.step, saved.documents)
        check_same_run(saved.documents["config"], config, folder.uri)
        check_lanes(saved.documents["data"]["lanes"], config, folder.uri)
        found.append(saved)
        return saved.step

    step = run_on_rank_zero(world, look)
    if step is None:
        return None
    return run_on_all_ranks(world, lambda: found[0] if found else store.load(step))
