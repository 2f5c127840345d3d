"""Going on with a run on other shards than before: at the end of an epoch, and on request only.

In mid-epoch nobody could say which samples of the new shards the epoch has had already.
"""

from dataclasses import dataclass
from typing import Any

from aae_dist.checkpoints.store import Saved
from aae_dist.config import RunConfig
from aae_dist.data import Manifest, SampleOrder
from aae_dist.errors import CheckpointError
from aae_dist.training.state import TrainState


@dataclass(frozen=True)
class Restart:
    """An epoch that begins on other shards than those before it."""

    epoch: int
    samples_before: int
    """Samples of each epoch before."""

    def move(self, state: TrainState, order: SampleOrder) -> None:
        """Put `state`, as it was saved, at the beginning of the epoch in the new order."""
        state.position = self.epoch * order.lane_length
        state.samples_shift += self.epoch * (self.samples_before - order.num_samples)


def restart_on_new_shards(
    saved: Saved | None, manifest: Manifest, config: RunConfig, run_uri: str
) -> Restart | None:
    """Return where to begin on new shards; None when they are those of the checkpoint.

    Raises:
        CheckpointError: the shards changed within an epoch, or nobody said that they may.
    """
    if saved is None or saved.documents["data"]["manifest"] == manifest.id:
        return None
    before: dict[str, Any] = saved.documents["data"]
    lane_length = -(-before["num_samples"] // before["lanes"])
    epoch, offset = divmod(saved.documents["state"]["position"], lane_length)
    problem = (
        f"{run_uri} was trained on other shards: {before['num_samples']} samples then, "
        f"{manifest.num_samples} in data.train now, and its checkpoint of step {saved.step} "
    )
    if offset:
        raise CheckpointError(
            f"{problem}stands at {offset / lane_length:.0%} of epoch {epoch}, where they cannot "
            f"change. Restore the old shards, for instance to finish the epoch with "
            f"train.epochs={epoch + 1}, or take a new run.name with run.init_from={run_uri}"
        )
    if not config.data.accept_new_shards:
        raise CheckpointError(
            f"{problem}ends epoch {epoch - 1}. Set data.accept_new_shards=true to go on with the "
            "new ones from the next epoch, restore the old ones, or take a new run.name"
        )
    return Restart(epoch, before["num_samples"])
