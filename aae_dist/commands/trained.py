"""What every verb on a trained run does first."""

from collections.abc import Sequence

import torch

from aae_dist import load_run
from aae_dist.config.inference import with_overrides
from aae_dist.config.paths import absolute_storage
from aae_dist.distributed.world import from_environment
from aae_dist.errors import ConfigError
from aae_dist.inference.trained_run import TrainedRun

DEVICE = "train.device="


def open_run(
    uri: str, step: int | None = None, overrides: Sequence[str] = (), *, reads_data: bool = True
) -> TrainedRun:
    """Load a run, on the CPU unless told otherwise, with the threads that it was trained with.

    Args:
        uri: the run's folder.
        step: the checkpoint's step; by default the newest.
        overrides: of `data.*`, how the run's verbs read data, and of `train.device`.
        reads_data: whether the verb reads any, so that `data.*` may be overridden.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies, or none of this step.
        ConfigError: an override is wrong, or would do nothing here; there is no GPU for cuda.
    """
    device = "cpu"
    for item in overrides:
        if item.startswith(DEVICE):
            device = item.removeprefix(DEVICE)
        elif not (reads_data and item.startswith("data.")):
            allowed = "data.* and train.device" if reads_data else "train.device"
            raise ConfigError(
                f"{item}: here only {allowed} may be overridden; launch.* is for encode, and for "
                "reconstruct with a folder as --out"
            )
    run = load_run(absolute_storage(uri), from_environment(device).device, step)
    run.config = with_overrides(run.config, overrides)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.cpus_per_worker)
    return run
