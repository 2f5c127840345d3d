"""Small data in memory, and configurations of runs that take under a second."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.config import load_config
from aae_dist.data import open_dataset

Arrays = tuple[NDArray[Any], NDArray[np.int64]]


def digits(count: int = 600) -> Arrays:
    """The first shipped digits, uint8 (N, 1, 8, 8), and their labels."""
    items = ["run.name=x", "data.train=builtin://digits/train", "train.steps=1"]
    data = load_config([], items).config.data
    images, labels = open_dataset("builtin://digits/train", data).read(range(count))
    return images.numpy().copy(), labels.numpy().copy()


def small(storage: Path, **sections: Any) -> dict[str, Any]:
    """A run of 24 steps of a small network; sections are merged into it."""
    config: dict[str, Any] = {
        "run": {"storage": storage},
        "model": {
            "latent_dim": 2,
            "encoder_widths": (16,),
            "decoder_widths": (16,),
            "discriminator_widths": (16,),
        },
        "train": {"steps": 24, "log_every_steps": 4, "global_batch_size": 64},
        "wandb": {"mode": "disabled"},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config
