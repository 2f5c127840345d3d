"""The labelled set of a semi-supervised run: read once, the same on every rank.

It becomes part of the run's checkpoints, as the vectors of a prior do: a resumed run draws from the
same samples, and needs their shards no more.
"""

import math

import numpy as np
import torch
import torch.distributed as dist

from aae_dist.checkpoints.format import Checkpoint
from aae_dist.config import RunConfig
from aae_dist.data import Dataset, open_dataset
from aae_dist.distributed.world import World, run_on_rank_zero
from aae_dist.errors import ConfigError, DataError
from aae_dist.methods.method import LabelledSet

MAX_BYTES = 256 << 20
"""Largest labelled set, in bytes of decoded samples: every rank and every checkpoint holds it."""
CHUNK = 256


def labelled_set(
    config: RunConfig,
    train: Dataset,
    checkpoint: Checkpoint | None,
    world: World,
) -> LabelledSet | None:
    """Return the samples of `data.labelled`, or those that a checkpoint holds; a collective.

    Raises:
        ConfigError: they are larger than 256 MiB, or other samples than those of `train`.
        DataError: one cannot be read, or has no label of a class of the run.
    """
    if config.data.labelled is None:
        return None
    if checkpoint is not None:
        held = checkpoint.tensors["labelled"]
        return LabelledSet(held["images"], held["labels"])
    found: list[LabelledSet] = []

    def read() -> list[int]:
        found.append(_read(config, train))
        return list(found[0].images.shape)

    # Only rank 0 reads, as for a prior that is a set of vectors.
    shape = run_on_rank_zero(world, read)
    if world.size == 1:
        return found[0]
    images = found[0].images if found else torch.empty(shape, dtype=train.dtype)
    labels = found[0].labels if found else torch.empty(shape[0], dtype=torch.int64)
    return LabelledSet(_broadcast(images, world), _broadcast(labels, world))


def _broadcast(values: torch.Tensor, world: World) -> torch.Tensor:
    sent = values.to(world.device)
    dist.broadcast(sent, 0)
    return sent.cpu()


def _read(config: RunConfig, train: Dataset) -> LabelledSet:
    shards = config.data.labelled
    assert shards is not None
    settings = config.data.model_copy(update={"decoded": "none"})
    dataset = open_dataset(shards, settings, train.image_shape)
    if dataset.dtype != train.dtype:
        raise ConfigError(
            f"data.labelled: samples are {dataset.dtype}, those of data.train {train.dtype}; "
            "pack both in the same way"
        )
    num_bytes = len(dataset) * math.prod(dataset.image_shape) * dataset.dtype.itemsize
    if num_bytes > MAX_BYTES:
        raise ConfigError(
            f"data.labelled: {len(dataset):,} samples are {num_bytes / (1 << 20):,.0f} MiB, and "
            f"every rank holds them all; give at most {MAX_BYTES >> 20} MiB"
        )
    if not len(dataset):
        raise DataError("data.labelled: no samples; name shards that have some")
    parts = [
        dataset.read(np.arange(start, min(start + CHUNK, len(dataset))))
        for start in range(0, len(dataset), CHUNK)
    ]
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    _check_labels(config, dataset, labels)
    return LabelledSet(images.cpu(), labels.cpu())


def _check_labels(config: RunConfig, dataset: Dataset, labels: torch.Tensor) -> None:
    prior = config.prior
    assert prior.kind == "product"
    num_classes = next(part.dims for part in prior.parts if part.prior.kind == "categorical")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        number = int(wrong[0])
        label = int(labels[number])
        got = "no label" if label < 0 else f"label {label}"
        raise DataError(
            f"data.labelled: sample {dataset.keys([number])[0]!r} has {got}, and {len(wrong)} of "
            f"{len(labels)} have none from 0 to {num_classes - 1}, the classes of the categorical "
            "part; label them, or leave them out"
        )
