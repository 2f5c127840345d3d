"""What every verb on a trained run does first."""

import torch

from aae_dist import load_run
from aae_dist.config.paths import absolute_storage
from aae_dist.training.trained_run import TrainedRun


def open_run(uri: str, step: int | None = None) -> TrainedRun:
    """Load a run on the CPU with the threads that it was trained with.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies, or none of this step.
    """
    run = load_run(absolute_storage(uri), step=step)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.cpus_per_worker)
    return run
