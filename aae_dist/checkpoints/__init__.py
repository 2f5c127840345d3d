"""The format of a checkpoint, and the store that writes and verifies them."""

from aae_dist.checkpoints.format import Checkpoint, WeightAverage, check_metadata, config_of
from aae_dist.checkpoints.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "WeightAverage", "check_metadata", "config_of"]
