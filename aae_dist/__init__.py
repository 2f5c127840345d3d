"""Distributed training of adversarial autoencoders: Ray Train, DDP, WebDataset shards."""

from typing import TYPE_CHECKING, Any

from aae_dist.errors import (
    AaeDistError,
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    LaunchError,
    TrainingDivergedError,
)
from aae_dist.version import __version__

if TYPE_CHECKING:
    from aae_dist.inference.trained_run import TrainedRun, load_run

__all__ = [
    "AaeDistError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "LaunchError",
    "TrainedRun",
    "TrainingDivergedError",
    "__version__",
    "load_run",
]


def __getattr__(name: str) -> Any:
    # Lazy: importing torch takes seconds, and a wrong configuration is answered at once.
    if name in ("TrainedRun", "load_run"):
        from aae_dist.inference import trained_run

        return getattr(trained_run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
