"""The vectors of a prior that is a set of them, read once, when a run starts.

They become part of the run's checkpoints: a resumed run draws from the same ones, and a trained run
needs neither the data set nor the other run any more.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.checkpoints.store import Saved
from aae_dist.config import RunConfig
from aae_dist.config.sections.prior import DataPrior, RunPrior
from aae_dist.data import Dataset, open_dataset
from aae_dist.distributed.collectives import run_on_rank_zero
from aae_dist.distributed.world import World
from aae_dist.errors import ConfigError
from aae_dist.inference.trained_run import load_run
from aae_dist.utils.arrays import evenly_spaced
from aae_dist.utils.progress import Show, progress

CHUNK = 256


def prior_vectors(
    config: RunConfig, saved: Saved | None, world: World, show: Show = progress
) -> Tensor | None:
    """Return float32 (M, latent_dim), equal on all ranks; None for priors of other kinds.

    Raises:
        AaeDistError: the vectors cannot be read, or are of another length.
    """
    if not isinstance(config.prior, DataPrior | RunPrior):
        return None
    if saved is not None:
        return saved.tensors["prior"]["vectors"]
    found: list[Tensor] = []

    def read() -> list[int]:
        found.append(_read(config, show))
        return list(found[0].shape)

    # Rank 0 alone reads: on other machines, codes might be rounded otherwise.
    shape = run_on_rank_zero(world, read)
    vectors = found[0] if found else torch.empty(shape)
    if world.size > 1:
        vectors = vectors.to(world.device)
        dist.broadcast(vectors, 0)
    return vectors.cpu()


def _read(config: RunConfig, show: Show) -> Tensor:
    match config.prior:
        case DataPrior():
            key, vectors = "prior.vectors", _vectors_of_data(config.prior, config, show)
        case RunPrior():
            key, vectors = "prior.uri", _codes_of_run(config.prior, show)
        case _:
            raise AssertionError
    latent_dim = config.model.latent_dim
    if vectors.shape[1] != latent_dim:
        raise ConfigError(
            f"{key}: needs vectors of model.latent_dim={latent_dim} numbers (got "
            f"{vectors.shape[1]}); set model.latent_dim={vectors.shape[1]}"
        )
    return vectors.float().contiguous()


def _vectors_of_data(prior: DataPrior, config: RunConfig, show: Show) -> Tensor:
    settings = config.data.model_copy(
        update={"image_keys": (prior.key,), "label_key": None, "image_size": None, "channels": None}
    )
    dataset = open_dataset(prior.vectors, settings, show=show)
    chunks = _readable(dataset, prior.max_vectors, settings.max_bad_fraction, show)
    return torch.cat([vectors.flatten(1) for vectors in chunks])


def _codes_of_run(prior: RunPrior, show: Show) -> Tensor:
    run = load_run(prior.uri)
    dataset = open_dataset(run.config.data.train, run.config.data, run.image_shape, show=show)
    chunks = _readable(dataset, prior.max_vectors, run.config.data.max_bad_fraction, show)
    return torch.cat([run.encode(images) for images in chunks])


def _readable(dataset: Dataset, most: int, max_bad_fraction: float, show: Show) -> Iterator[Tensor]:
    """Yield the good ones of at most `most` samples spread evenly over all, some at a time.

    Raises:
        DataError: more than a part of `max_bad_fraction` of them is bad; one of them is named.
    """
    indices, num_bad = evenly_spaced(most, len(dataset)), 0
    with show("reading the prior", len(indices), "vectors") as advance:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            samples = dataset.load(chunk)
            num_bad += len(samples.bad)
            if num_bad > max_bad_fraction * len(indices):
                dataset.read(chunk)  # raises
            good = torch.ones(len(chunk), dtype=torch.bool)
            good[list(samples.bad)] = False
            yield samples.images[good]
            advance(len(chunk))
