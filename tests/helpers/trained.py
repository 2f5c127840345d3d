"""Run folders with a checkpoint of fresh weights: what the verbs need, without training."""

import json
from pathlib import Path
from typing import Any

from helpers.ranks import single_world

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, config_from_tree
from aae_dist.models import build_networks
from aae_dist.storage import is_remote, open_storage
from aae_dist.training.state import TrainState

DIGITS = (1, 28, 28)
WIDTHS = {"encoder_widths": (16,), "decoder_widths": (16,), "discriminator_widths": (16,)}

_SAVED: dict[str, tuple[RunConfig, dict[str, bytes]]] = {}
"""What was written into empty folders, by what was asked for: most tests ask for the same runs."""


def save_run(
    uri: str | Path,
    step: int = 7,
    shape: tuple[int, int, int] = DIGITS,
    best: bool = False,
    **sections: Any,
) -> RunConfig:
    """Write a checkpoint of `step` into the run folder `uri`; keyword arguments are sections."""
    tree: dict[str, Any] = {
        "run": {"name": "saved", "seed": step},
        "data": {
            "train": "builtin://digits/train",
            "validation": "builtin://digits/validation",
        },
        "train": {"steps": 100},
        **sections,
    }
    model = sections.get("model", {})
    tree["model"] = {"latent_dim": 2, **({} if "kind" in model else WIDTHS), **model}
    asked = json.dumps([tree, step, shape, best], sort_keys=True, default=str)
    is_new = not is_remote(str(uri)) and not Path(uri, "checkpoints").exists()
    if is_new and asked in _SAVED:
        config, files = _SAVED[asked]
        for name, data in files.items():
            Path(uri, name).parent.mkdir(parents=True, exist_ok=True)
            Path(uri, name).write_bytes(data)
        return config
    config = _save(uri, tree, step, shape, best)
    if is_new:
        paths = [path for path in Path(uri, "checkpoints").rglob("*") if path.is_file()]
        _SAVED[asked] = (config, {str(p.relative_to(uri)): p.read_bytes() for p in paths})
    return config


def _save(
    uri: str | Path, tree: dict[str, Any], step: int, shape: tuple[int, int, int], best: bool
) -> RunConfig:
    config = config_from_tree(tree)
    networks = build_networks(config, shape, single_world().device)
    document = {"step": step, "position": 0, "best": None}
    metadata = {
        "config": config.model_dump(mode="json"),
        "data": {"image_shape": shape, "lanes": config.lanes},
        "state": document,
    }
    store = CheckpointStore(open_storage(str(uri)), keep=3)
    store.save(step, TrainState(networks, {}).tensors(), metadata, best)
    store.wait()
    return config
