"""What every verb on a trained run does first."""

from collections.abc import Sequence

import torch

from aae_dist import load_run
from aae_dist.config.paths import absolute_storage
from aae_dist.config.reading import with_overrides
from aae_dist.errors import ConfigError
from aae_dist.training.trained_run import TrainedRun


def open_run(uri: str, step: int | None = None, overrides: Sequence[str] = ()) -> TrainedRun:
    """Load a run on the CPU with the threads that it was trained with.

    Args:
        uri: the run's folder.
        step: the checkpoint's step; by default the newest.
        overrides: of `data.*`, how the run's verbs read data.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies, or none of this step.
        ConfigError: an override is wrong, or would do nothing here.
    """
    for item in overrides:
        if not item.startswith("data."):
            raise ConfigError(
                f"{item}: here only data.* may be overridden; launch.* and train.device are for "
                "encode, and for reconstruct with a folder as --out"
            )
    run = load_run(absolute_storage(uri), step=step)
    run.config = with_overrides(run.config, overrides)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.cpus_per_worker)
    return run
