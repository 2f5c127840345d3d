"""Distributed training of adversarial autoencoders: Ray Train, DDP, WebDataset shards."""

from importlib import import_module
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
    from aae_dist import data, losses, methods, metrics, models, priors
    from aae_dist.api.anndata import from_anndata
    from aae_dist.api.callbacks import Callback
    from aae_dist.api.config import load_config
    from aae_dist.api.hub import pull, push
    from aae_dist.api.packing import pack
    from aae_dist.api.result import History, TrainingResult
    from aae_dist.api.sweeping import SweepResult, submit, tune
    from aae_dist.api.training import train
    from aae_dist.config import RunConfig
    from aae_dist.inference.trained_run import TrainedRun, load_run

__all__ = [
    "AaeDistError",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "History",
    "Interrupted",
    "LaunchError",
    "RunConfig",
    "SweepResult",
    "TrainedRun",
    "TrainingDivergedError",
    "TrainingResult",
    "__version__",
    "data",
    "from_anndata",
    "load_config",
    "load_run",
    "losses",
    "methods",
    "metrics",
    "models",
    "pack",
    "priors",
    "pull",
    "push",
    "submit",
    "train",
    "tune",
]

# Lazy: importing torch takes seconds, and a wrong configuration is answered at once.
_MODULES = {
    "Callback": "api.callbacks",
    "History": "api.result",
    "RunConfig": "config",
    "SweepResult": "api.sweeping",
    "TrainedRun": "inference.trained_run",
    "TrainingResult": "api.result",
    "from_anndata": "api.anndata",
    "load_config": "api.config",
    "load_run": "inference.trained_run",
    "pack": "api.packing",
    "pull": "api.hub",
    "push": "api.hub",
    "submit": "api.sweeping",
    "train": "api.training",
}

_PACKAGES = ("data", "losses", "methods", "metrics", "models", "priors", "tune")
"""Modules of these names, for one's own loop; `tune` is one that can be called."""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
