"""The data of a run: shards, their order, the evaluation and the prior, opened on all ranks."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.checkpoints.format import DEFAULTS, Checkpoint
from aae_dist.config import Augment, Columns, RunConfig, metric_names, run_config
from aae_dist.config.sections.model import DataPrior, RunPrior
from aae_dist.data import Dataset, SampleOrder, open_dataset, resolve_window
from aae_dist.data.decode.images import Resize
from aae_dist.data.format.manifest import join_classes
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.errors import ConfigError
from aae_dist.evaluation import Evaluator, classes_by
from aae_dist.evaluation.linear import explainable_loss
from aae_dist.inference.trained_run import build_features, load_run
from aae_dist.losses import COUNT_LOSSES
from aae_dist.methods.build import reconstruction_loss
from aae_dist.models.tables import log_normalized
from aae_dist.priors import Prior, build_prior
from aae_dist.storage import is_remote
from aae_dist.training.checkpointer import NewShards, find_new_shards, with_inferred
from aae_dist.utils.arrays import stratified
from aae_dist.utils.text import Show, progress

NUM_MEASURED = 1024
"""Samples whose mean and spread are measured: 3 % of error at one feature's standard deviation."""
MAX_MEASURED_NUMBERS = 1 << 25
"""Numbers in all samples that are measured: 256 MiB as float64."""
NUM_PROBED = 256
"""Samples whose range is checked; of the first shard alone where shards have to be fetched."""
NUM_LOOKED = 64
"""Training samples that are decoded at the start, to tell soon what of them is not used."""
PRIOR_CHUNK = 256
"""Samples read at once for a prior that is a set of vectors."""


@dataclass(frozen=True)
class TrainingData:
    """Training and validation samples, and the prior."""

    config: RunConfig
    """The configuration, including the values inferred from the data."""
    train: Dataset
    order: SampleOrder
    validation: Dataset | None
    evaluator: Evaluator | None
    prior: Prior
    baseline_loss: float | None
    """Reconstruction loss of the data's mean; None in a run of a version that did not measure."""
    scaling: tuple[torch.Tensor, float, float] | None
    """Mean, float32 (C, H, W), and standard deviation of the features, and the median total of
    counts, for the encoder and the decoder of a new run; None where they get numbers as they are,
    or have them already."""
    new_shards: NewShards | None = None
    """Where to start when the shards are not those of the checkpoint."""
    notes: tuple[str, ...] = ()
    """Lines about data that is not used as given."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The data and its order, for a checkpoint."""
        classes = self.train.manifest.classes
        return ({"classes": dict(classes)} if classes else {}) | {
            "manifest": self.train.manifest.id,
            "num_samples": self.train.manifest.num_samples,
            "lanes": self.order.lanes,
            "shuffle_window": self.order.window,
            "image_shape": list(self.train.image_shape),
            "baseline_loss": self.baseline_loss,
            "defaults": DEFAULTS,
        }

    def best_metric_id(self, metric: str) -> str:
        """Return the identity of comparable values of a metric: validation data and features."""
        shards = "" if self.validation is None else self.validation.manifest.id
        by_features = self.evaluator is not None and metric_names.FEATURES in metric_names.basis_of(
            (metric,)
        )
        features = self.evaluator.features_hash if self.evaluator and by_features else ""
        return f"{metric} of {shards}{features}"


def open_data(
    config: RunConfig, world: World, checkpoint: Checkpoint | None, run_uri: str, show: Show
) -> TrainingData:
    """Open shards, order, evaluation and prior, on every rank or on none.

    Raises:
        AaeDistError: the data cannot be read, or is not that of the checkpoint.
    """
    if checkpoint:
        config = with_inferred(config, checkpoint.metadata["config"])
    vectors = prior_vectors(config, checkpoint, world, show)

    def work() -> TrainingData:
        # Shards.
        dataset = open_dataset(config.data.train, config.data, device=world.device, show=show)
        dataset.label_rule = run_config.label_rule(config)
        if problems := [*_augment_problems(config, dataset), *_range_problems(config, dataset)]:
            raise ConfigError("\n  ".join(problems))
        new_shards = find_new_shards(checkpoint, dataset.manifest, config, run_uri)
        # SampleOrder and prior.
        order = _order(config, dataset, world, checkpoint)
        prior = build_prior(config.prior, config.model.latent_dim, vectors)
        validation, evaluator = _open_validation(config, dataset, prior, world, show)
        inferred = _infer(config, dataset, order)
        notes = (
            *_class_notes(dataset, validation),
            *_unused_notes(dataset, world, config.decoding_threads),
        )
        known = checkpoint.metadata["data"].get("baseline_loss") if checkpoint else None
        return TrainingData(
            inferred, dataset, order, validation, evaluator, prior, known, None, new_shards, notes
        )

    data = run_on_all_ranks(world, work)
    return data if checkpoint else _measured(data, world)


def _open_validation(
    config: RunConfig, dataset: Dataset, prior: Prior, world: World, show: Show
) -> tuple[Dataset, Evaluator] | tuple[None, None]:
    if config.data.validation is None:
        return None, None
    shape = dataset.image_shape
    validation = open_dataset(config.data.validation, config.data, shape, show=show)
    validation.label_rule = dataset.label_rule
    evaluator = Evaluator(
        validation,
        prior,
        world,
        config.run.seed,
        threads=config.decoding_threads,
        training=dataset,
        classes=validation.manifest.names,
        classes_by=classes_by(config),
        features=build_features(config, shape, world.device),
    )
    return validation, evaluator


def _class_notes(train: Dataset, validation: Dataset | None) -> Iterator[str]:
    """Yield how the numbers of classes differ, within a data set and between the two."""
    named = [("data.train", train)]
    named += [("data.validation", validation)] if validation is not None else []
    maps = [(key, data.manifest.classes) for key, data in named]
    for key, data in named:
        if data.manifest.class_conflict:
            yield f"{key}: {data.manifest.class_conflict}"
    if problem := join_classes(maps)[1]:
        yield f"classes have other numbers in training than in validation: {problem}"


def _unused_notes(train: Dataset, world: World, threads: int) -> Iterator[str]:
    """Yield what of some training samples, and of the shards, is not used as given."""
    if not world.is_main:  # which alone logs
        return
    first = train.manifest.shards[0]
    total = first.samples if is_remote(first.folder) else len(train)
    looked = stratified(NUM_LOOKED, total)
    with ThreadPoolExecutor(max(1, threads), "decode") as workers:
        train.load(looked, workers)
    counts = train.unused.counts
    yield from (f"data.train: {line}" for line in train.unused_lines(counts, len(looked)))
    yield from (f"data.train: {line}" for line in train.unused_members())


def _order(
    config: RunConfig, dataset: Dataset, world: World, checkpoint: Checkpoint | None
) -> SampleOrder:
    """Return the training order; a checkpoint's lanes and window take precedence."""
    before = checkpoint.metadata["data"] if checkpoint else None
    lanes = before["lanes"] if before else config.lanes
    if world.size > lanes:
        raise ConfigError(
            f"{world.size} ranks for {lanes} lanes of data, so some had none; use at most "
            f"{lanes} ranks" + ("" if before else " or a larger train.global_batch_size")
        )
    manifest = dataset.manifest
    return SampleOrder(
        manifest.counts,
        seed=config.run.seed,
        global_batch_size=config.train.global_batch_size,
        lanes=lanes,
        window=before["shuffle_window"] if before else resolve_window(config.data, manifest),
    )


def _infer(config: RunConfig, dataset: Dataset, order: SampleOrder) -> RunConfig:
    """Return the configuration with the values inferred from the data."""
    channels, *sides = dataset.image_shape
    inferred: dict[str, Any] = {"lanes": order.lanes, "shuffle_window": order.window}
    inferred |= {"channels": channels, "resize": Resize.from_settings(config.data).how}
    if len(sides) == 2 and sides[0] == sides[1]:
        inferred["image_size"] = sides[0]
    if config.data.standardize is None:
        unbounded = config.model.decoder_output == "linear"
        inferred["standardize"] = unbounded and dataset.dtype.is_floating_point
    return config.model_copy(update={"data": config.data.model_copy(update=inferred)})


# What new runs measure: the unit of weights, and the scaling of features.


def _measured(data: TrainingData, world: World) -> TrainingData:
    found: list[torch.Tensor] = []

    def measure() -> float:
        images = first_samples(data.train, data.order)
        pixels = images.double() / 255 if images.dtype == torch.uint8 else images.double()
        name = data.config.method.reconstruction_loss
        library = pixels.flatten(1).sum(1).median()
        features = log_normalized(pixels, library) if name in COUNT_LOSSES else pixels
        mean = features.mean(0)
        std = (features - mean).square().mean().sqrt()
        found.append(torch.cat([mean.flatten(), std[None], library[None]]).float())
        if name in COUNT_LOSSES:
            return explainable_loss(name, pixels, data.config.model.latent_dim) or 1.0
        loss = reconstruction_loss(data.config)
        return float(loss(mean.expand_as(pixels), pixels).mean()) or 1.0  # all samples are equal

    # Only rank 0 measures: other machines may round otherwise.
    baseline_loss = run_on_rank_zero(world, measure)
    statistics = found[0] if found else torch.empty(math.prod(data.train.image_shape) + 2)
    if world.size > 1:
        statistics = statistics.to(world.device)
        dist.broadcast(statistics, 0)
    *_, std, library = statistics.tolist()
    mean = statistics[:-2].cpu().unflatten(0, data.train.image_shape)
    counts = data.config.method.reconstruction_loss in COUNT_LOSSES
    scaled = data.config.data.standardize or counts or data.config.data.columns is not None
    scaling = (mean, std or 1.0, library or 1.0) if scaled else None
    return replace(data, baseline_loss=baseline_loss, scaling=scaling)


def first_samples(dataset: Dataset, order: SampleOrder) -> torch.Tensor:
    """Return the good ones of the order's first samples: 1,024, fewer of large ones.

    They are read first in any case, and come from all lanes, so that shards sorted by class do not
    bias them. Zeros of shape (1, C, H, W) if none is good.
    """
    most = min(NUM_MEASURED, max(1, MAX_MEASURED_NUMBERS // math.prod(dataset.image_shape)))
    chosen: list[torch.Tensor] = []
    position = num = 0
    while num < most and position < order.lane_length:
        plan = order.batch(position)
        samples = dataset.load(plan.indices[plan.valid][: most - num])
        good = torch.ones(len(samples.images), dtype=torch.bool)
        good[list(samples.bad)] = False
        chosen.append(samples.images[good])
        position, num = plan.next_position, num + len(good)
    images = torch.cat(chosen)
    return images if len(images) else images.new_zeros(1, *dataset.image_shape)


# Settings that do not suit the samples.


def _augment_problems(config: RunConfig, data: Dataset) -> Iterator[str]:
    augment = config.data.augment
    if augment == Augment():
        return
    unbounded = data.dtype.is_floating_point and config.model.decoder_output == "linear"
    shape = data.image_shape
    if len(shape) != 3 or shape[:2] == (1, 1):
        kind = {2: "signals", 4: "volumes"}.get(len(shape))
        found = f"{kind} of shape {shape}" if kind else f"vectors of {shape[-1]} numbers"
        yield f"data.augment: is for images; these are {found}; leave it out"
    elif unbounded and (augment.brightness, augment.contrast) != (0.0, 0.0):
        yield (
            "data.augment: brightness and contrast clip to [0, 1], and data of floats for a linear "
            "decoder may lie outside; leave them out, or use model.decoder_output=sigmoid"
        )


def _range_problems(config: RunConfig, data: Dataset) -> Iterator[str]:
    loss = config.method.reconstruction_loss
    if config.data.columns is not None:
        yield from _column_problems(config.data.columns, data)
        return
    if loss in COUNT_LOSSES:
        yield from _count_problems(loss, data)
        return
    bce = config.method.reconstruction_loss == "bce"
    sigmoid = config.model.decoder_output == "sigmoid" and config.model.decoder is None
    if data.dtype == torch.uint8 or not (bce or sigmoid):
        return
    images = _probed(data)
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        key = "method.reconstruction_loss: bce" if bce else "model.decoder_output: sigmoid"
        yield (
            f"{key} is for numbers in [0, 1]; data.train has numbers from {low:g} to {high:g}; use "
            "model.decoder_output=linear with another loss than bce, or scale the data"
        )


def _probed(data: Dataset) -> torch.Tensor:
    first = data.manifest.shards[0]
    total = first.samples if is_remote(first.folder) else len(data)
    return data.load(stratified(NUM_PROBED, total)).images


def _column_problems(columns: Columns, data: Dataset) -> Iterator[str]:
    sizes, shape = columns.sizes, data.image_shape
    if shape != (1, 1, sum(sizes)) or not data.dtype.is_floating_point:
        yield (
            f"data.columns: {sum(sizes)} columns in all, for vectors of as many floats; data.train "
            f"has samples of shape {shape}, {data.dtype}"
        )
        return
    _, counts, *categories = _probed(data).flatten(1).split(sizes, 1)
    wrong = counts[(counts < 0) | (counts != counts.round())]
    if len(wrong):
        yield f"data.columns: counts are whole numbers from 0 on (got {wrong[0]:g})"
    for number, one_hot in enumerate(categories):
        is_valid = ((one_hot == 0) | (one_hot == 1)).all(1) & (one_hot.sum(1) == 1)
        # Rows of a bad sample are zeros.
        odd = one_hot[~is_valid & one_hot.any(1)]
        if len(odd):
            yield (
                f"data.columns: category {number} should be one-hot, one 1 among zeros (got "
                f"{odd[0].tolist()}); use torch.nn.functional.one_hot"
            )


def _count_problems(loss: str, data: Dataset) -> Iterator[str]:
    if data.dtype == torch.uint8:
        yield (
            f"method.reconstruction_loss: {loss} is for counts, floats of whole numbers; these "
            "samples are uint8 images"
        )
        return
    x = _probed(data)
    wrong = x[(x < 0) | (x != x.round())]
    if len(wrong):
        yield (
            f"method.reconstruction_loss: {loss} is for counts, whole numbers from 0 on; "
            f"data.train has {wrong[0]:g}; give counts as they were measured, without "
            "normalization, or use sum_half"
        )


# A prior that is a set of vectors. They become part of the run's checkpoints: a resumed run draws
# from the same ones, and a trained run needs neither the data set nor the other run.


def prior_vectors(
    config: RunConfig, checkpoint: Checkpoint | None, world: World, show: Show = progress
) -> torch.Tensor | None:
    """Return float32 (M, latent_dim), equal on all ranks; None for priors of other kinds."""
    if not isinstance(config.prior, DataPrior | RunPrior):
        return None
    if checkpoint is not None:
        return checkpoint.tensors["prior"]["vectors"]
    found: list[torch.Tensor] = []

    def read() -> list[int]:
        found.append(_read_vectors(config, show))
        return list(found[0].shape)

    # Only rank 0 reads: other machines may round codes differently.
    shape = run_on_rank_zero(world, read)
    vectors = found[0] if found else torch.empty(shape)
    if world.size > 1:
        vectors = vectors.to(world.device)
        dist.broadcast(vectors, 0)
    return vectors.cpu()


def _read_vectors(config: RunConfig, show: Show) -> torch.Tensor:
    match config.prior:
        case DataPrior() as prior:
            key, no_images = (
                "prior.vectors",
                {"label_key": None, "image_size": None, "channels": None, "layout": None},
            )
            settings = config.data.model_copy(update={"image_keys": (prior.key,), **no_images})
            dataset = open_dataset(prior.vectors, settings, show=show)
            chunks = _good_samples(dataset, prior.max_vectors, settings.max_bad_fraction, show)
            vectors = torch.cat([vectors.flatten(1) for vectors in chunks])
        case RunPrior() as prior:
            key, run = "prior.uri", load_run(prior.uri)
            data = run.config.data
            dataset = open_dataset(data.train, data, run.image_shape, show=show)
            chunks = _good_samples(dataset, prior.max_vectors, data.max_bad_fraction, show)
            vectors = torch.cat([run.encode(images) for images in chunks])
        case _:
            raise AssertionError
    latent_dim = config.model.latent_dim
    if vectors.shape[1] != latent_dim:
        raise ConfigError(
            f"{key}: needs vectors of model.latent_dim={latent_dim} numbers (got "
            f"{vectors.shape[1]}); set model.latent_dim={vectors.shape[1]}"
        )
    return vectors.float().contiguous()


def _good_samples(
    dataset: Dataset, most: int, max_bad_fraction: float, show: Show
) -> Iterator[torch.Tensor]:
    """Yield the good ones of at most `most` samples, spread over all, in chunks.

    DataError, which names one, if more than `max_bad_fraction` of them are bad.
    """
    indices, num_bad = stratified(most, len(dataset)), 0
    with show("reading the prior", len(indices), "vectors") as advance:
        for start in range(0, len(indices), PRIOR_CHUNK):
            chunk = indices[start : start + PRIOR_CHUNK]
            samples = dataset.load(chunk)
            num_bad += len(samples.bad)
            if num_bad > max_bad_fraction * len(indices):
                dataset.read(chunk)  # raises
            good = torch.ones(len(chunk), dtype=torch.bool)
            good[list(samples.bad)] = False
            yield samples.images[good]
            advance(len(chunk))
