"""WebDataset shards in, global batches out.

Names are imported when they are first used: `aae-dist data` needs none that import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aae_dist.data.dataset import Dataset, open_dataset, read_arrays
    from aae_dist.data.format.manifest import Manifest, Shard
    from aae_dist.data.index.build import build_index, open_manifest
    from aae_dist.data.loader import Augmenter, Batch, BatchLoader
    from aae_dist.data.order import BatchPlan, SampleOrder, rank_rows, resolve_window

__all__ = [
    "Augmenter",
    "Batch",
    "BatchLoader",
    "BatchPlan",
    "Dataset",
    "Manifest",
    "SampleOrder",
    "Shard",
    "build_index",
    "open_dataset",
    "open_manifest",
    "rank_rows",
    "read_arrays",
    "resolve_window",
]

_MODULES = {
    "dataset": ("Dataset", "open_dataset", "read_arrays"),
    "index.build": ("build_index", "open_manifest"),
    "loader": ("Augmenter", "Batch", "BatchLoader"),
    "format.manifest": ("Manifest", "Shard"),
    "order": ("BatchPlan", "SampleOrder", "rank_rows", "resolve_window"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
