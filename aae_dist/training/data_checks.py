"""Whether the settings of a run suit the samples that it found, asked before training starts."""

from collections.abc import Iterator

import torch

from aae_dist.config import RunConfig
from aae_dist.config.sections.data import Augment
from aae_dist.data import Dataset
from aae_dist.errors import ConfigError
from aae_dist.storage import is_remote
from aae_dist.utils.arrays import evenly_spaced

NUM_PROBED = 256
"""Samples whose numbers are looked at; of the first shard alone where shards have to be fetched."""


def check_settings_fit(config: RunConfig, data: Dataset) -> None:
    """Raise ConfigError, with all reasons, when settings for images meet other numbers."""
    problems = [*_augment_problems(config, data), *_range_problems(config, data)]
    if problems:
        raise ConfigError("\n  ".join(problems))


def _augment_problems(config: RunConfig, data: Dataset) -> Iterator[str]:
    augment = config.data.augment
    if augment == Augment():
        return
    if data.image_shape[:2] == (1, 1):
        yield (
            f"data.augment: is for images; these samples are vectors of {data.image_shape[2]} "
            "numbers; leave it out"
        )
    elif _is_unbounded(config, data) and (augment.brightness, augment.contrast) != (0.0, 0.0):
        yield (
            "data.augment: brightness and contrast clip to [0, 1], and data of floats for a linear "
            "decoder may lie outside; leave them out, or use model.decoder_output=sigmoid"
        )


def _is_unbounded(config: RunConfig, data: Dataset) -> bool:
    return data.dtype.is_floating_point and config.model.decoder_output == "linear"


def _range_problems(config: RunConfig, data: Dataset) -> Iterator[str]:
    bce = config.method.reconstruction_loss == "bce"
    sigmoid = config.model.decoder_output == "sigmoid" and config.model.decoder is None
    if data.dtype == torch.uint8 or not (bce or sigmoid):
        return
    first = data.manifest.shards[0]
    total = first.samples if is_remote(first.folder) else len(data)
    images = data.load(evenly_spaced(NUM_PROBED, total)).images
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        key = "method.reconstruction_loss: bce" if bce else "model.decoder_output: sigmoid"
        yield (
            f"{key} is for numbers in [0, 1]; data.train has numbers from {low:g} to {high:g}; use "
            "model.decoder_output=linear with another loss than bce, or scale the data"
        )
