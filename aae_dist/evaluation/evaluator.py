"""Evaluation over all ranks, with bitwise the same metrics for any number of them.

The validation samples are cut in fixed chunks of 256; chunk i is encoded by rank i % R as a batch
of its own, so no product's shape depends on R. Rank 0 gathers the rows in order, computes all
statistics and broadcasts the metrics. Samples that cannot be read are skipped and counted.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.config import RunConfig, metric_names
from aae_dist.data.dataset import Dataset, Samples
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.errors import DataError
from aae_dist.evaluation import classes as class_scores, linear, part_scores, sample_scores
from aae_dist.evaluation.dimension import data_dimension, intrinsic_dimension
from aae_dist.evaluation.features import Features
from aae_dist.models import Autoencoder
from aae_dist.priors import Prior
from aae_dist.utils import arrays, tensors

CHUNK = 256
MAX_SAMPLES = 10_000
NUM_PICTURED = 32
NUM_STYLES, MAX_CLASSES_PICTURED = 8, 32
PRIOR_PICTURED = 5000
"""Prior samples in pictures: enough for a smooth density, however few the codes are."""


ClassesBy = Literal["part", "modes"] | None


def classes_by(config: RunConfig) -> ClassesBy:
    """Return where the codes of a run hold the classes that it was trained on; None without."""
    by_kind: dict[str, ClassesBy] = {"semi_supervised": "part", "label_guided": "modes"}
    return by_kind.get(config.method.kind)


@dataclass(frozen=True)
class EvaluationImages:
    """Contents of an evaluation's pictures, on the CPU: n scored samples, k of them shown."""

    codes: Tensor
    """Float32 [n, Z]; with cluster heads, what the decoder reads of them, [n, S]."""
    labels: Tensor
    """int64 [n], -1 where absent."""
    prior_samples: Tensor
    """Float32 [m, Z] or [m, S]."""
    originals: Tensor
    """uint8 or float32 [k, C, H, W], spread evenly over the scored samples."""
    reconstructions: Tensor
    """Float32 [k, C, H, W]; in [0, 1] unless model.decoder_output=linear."""
    decoded_prior: Tensor
    """Float32 [k, C, H, W]: the first k prior samples, decoded."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Names of labels, where they have some."""
    prior: Prior | None = None
    """p(z), for its density."""
    clusters: Tensor | None = None
    """int64 [n]: the most likely class of the categorical part that the encoder infers, if any."""
    class_grid: Tensor | None = None
    """Float32 [K, S, C, H, W]: prior samples of each class in S styles, decoded; None without."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation."""

    metrics: dict[str, float]
    """The same on every rank."""
    images: EvaluationImages | None
    """Contents of the pictures, on rank 0; None on the others."""


@dataclass(frozen=True)
class ScoredRows:
    """The results per validation sample, as columns of equal length n."""

    readable: Tensor
    """Bool [n]."""
    labels: Tensor
    """int64 [n], -1 where absent."""
    squared_errors: Tensor
    """Float64 [n], summed over an image."""
    code_logits: Tensor
    """Float64 [n, A], of the discriminator of each part; nan without one."""
    prior_logits: Tensor
    """Float64 [n, A], of one prior sample per row; nan without a discriminator."""
    codes: Tensor
    """Float64 [n, Z]."""

    NUM_SCALARS: ClassVar[int] = 3

    def pack(self) -> Tensor:
        """Return one table, float64 [n, 3 + 2 A + Z], for a single collective."""
        # float64 holds every float32 code, and every label below 2**53, exactly.
        columns = [column.cpu().double() for column in vars(self).values()]
        return torch.cat([c[:, None] if c.ndim == 1 else c for c in columns], dim=1)

    @classmethod
    def unpack(cls, table: Tensor, num_parts: int) -> "ScoredRows":
        rest = table.shape[1] - cls.NUM_SCALARS - 2 * num_parts
        scalars, code_logits, prior_logits, codes = table.split(
            [cls.NUM_SCALARS, num_parts, num_parts, rest], dim=1
        )
        readable, labels, errors = scalars.unbind(1)
        return cls(readable == 1, labels.long(), errors, code_logits, prior_logits, codes)

    def __len__(self) -> int:
        return len(self.readable)

    def __getitem__(self, rows: Tensor) -> "ScoredRows":
        return ScoredRows(**{name: column[rows] for name, column in vars(self).items()})


class Evaluator:
    """Scores networks on one validation set; measures the prior's null once, on first use."""

    def __init__(
        self,
        dataset: Dataset,
        prior: Prior,
        world: World,
        seed: int,
        max_samples: int = MAX_SAMPLES,
        name: str = "data.validation",
        threads: int = 1,
        classes: Mapping[int, str] | None = None,
        training: Dataset | None = None,
        classes_by: ClassesBy = None,
        features: Features | None = None,
    ) -> None:
        """Choose the samples to score: at most `max_samples`, spread over all.

        `name` is what errors call the data set; `threads` decode this rank's samples; `classes` are
        names of labels. To samples of `training` a PCA is fitted, a baseline of reconstruction.
        `classes_by` is where a run that trains on labels has its classes: in the categorical part
        of the code, or in the modes of the prior. By `features` samples are scored, if given.
        """
        total = dataset.manifest.num_samples
        self.num_samples = min(total, max_samples)
        if self.num_samples < metric_names.MIN_SCORED_SAMPLES:
            raise DataError(
                f"{name}: {total} samples are too few to score the match with the prior. "
                f"Give at least {metric_names.MIN_SCORED_SAMPLES}, better 10,000."
            )
        self._indices = arrays.stratified(self.num_samples, total)
        self._dataset, self._prior, self._world, self._seed = dataset, prior, world, seed
        self._name = name
        self._threads, self._classes = threads, classes or {}
        self._training, self._classes_by = training, classes_by
        self._num_parts, self._scores = len(prior.parts), part_scores.PartScores(prior, seed)
        self._linear: dict[str, float] | None = None
        self._samples = sample_scores.SampleScores(features) if features is not None else None

    @property
    def features_hash(self) -> str:
        """What samples are scored by; empty if they are not."""
        return "" if self._samples is None else self._samples.features.hash

    @torch.no_grad()
    def evaluate(self, networks: Autoencoder) -> Evaluation:
        """Score the networks; a collective: every rank calls it at the same step."""
        draw = tensors.keyed_generator(self._seed, "evaluation/prior")
        prior_nZ = self._prior.sample(self.num_samples, draw)

        # Encode this rank's chunks, then gather all rows on rank 0.
        chunks = run_on_all_ranks(self._world, lambda: self._encode_own(networks, prior_nZ))
        tables = [_gather_in_order(chunk, self.num_samples, self._world) for chunk in chunks]
        if self._samples is not None:
            self._samples.end_of_rows()
        rows = ScoredRows.unpack(tables[0], self._num_parts)
        good, prior_nZ = rows[rows.readable], prior_nZ[: len(rows)][rows.readable]
        pictured = arrays.stratified(NUM_PICTURED, len(good))
        originals: list[Tensor] = []

        # Compute the metrics on rank 0 and broadcast them.
        def compute_metrics() -> dict[str, float]:
            metrics = self._metrics(good, prior_nZ) | self._of_map(networks, good)
            if self._samples is not None:
                metrics |= self._samples.measure(tables[1], rows.readable)
            # Pictures' originals are read in here, where an error is raised on every rank.
            numbers = self._indices[rows.readable.numpy()][pictured]
            originals.append(self._dataset.load(numbers).images)
            return metrics

        metrics = run_on_rank_zero(self._world, compute_metrics)
        if not self._world.is_main:
            return Evaluation(metrics, None)
        shown = good.codes[torch.from_numpy(pictured)]
        return Evaluation(metrics, self._images(networks, good, shown, originals[0]))

    def _encode_own(self, networks: Autoencoder, prior_nZ: Tensor) -> list[Tensor]:
        """Return this rank's chunks, each [chunks of the busiest rank, CHUNK, columns].

        The first holds packed `ScoredRows`, float64; a second one features, if there are any.
        """
        num_chunks = -(-self.num_samples // CHUNK)
        chunks = range(self._world.rank, num_chunks, self._world.size)
        per_rank = -(-num_chunks // self._world.size)
        tables: list[Tensor] = []
        pool = ThreadPoolExecutor(self._threads, "decode") if self._threads > 1 else nullcontext()
        with pool as workers:
            # A rank without chunks encodes the first one, for the widths of the tables.
            for slot, chunk in enumerate(chunks or [0]):
                rows = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_samples))
                samples = self._dataset.load(self._indices[rows], workers)
                samples = self._dataset.with_label_holes(samples)
                parts = self._encode_chunk(networks, chunk, samples, prior_nZ[rows])
                tables = tables or [p.new_zeros(per_rank, CHUNK, p.shape[1]) for p in parts]
                for table, each in zip(tables, parts, strict=True):
                    table[slot, : len(each)] = each
        return tables

    def _encode_chunk(
        self, networks: Autoencoder, chunk: int, samples: Samples, prior_BZ: Tensor
    ) -> list[Tensor]:
        """Return the columns of a chunk: packed `ScoredRows`, and features if there are any."""
        images = samples.images.to(self._world.device)
        readable = torch.ones(len(images), dtype=torch.bool)
        readable[list(samples.bad)] = False
        draw = tensors.keyed_generator(self._seed, "evaluation/posterior", chunk)
        given = (samples.labels.to(images.device),) if self._prior.given else ()
        z_BZ = networks.encode(images, draw, *given)
        rebuilt = networks.decode(z_BZ, images)
        errors = squared_errors(rebuilt, images)
        features = []
        if self._samples is not None:
            decoded = networks.decode(prior_BZ.to(self._world.device))
            features = [self._samples.rows(as_floats(images), rebuilt, decoded)]
        conditions = (samples.labels.cpu(),) if self._classes_by == "modes" else ()
        if conditions:
            prior_BZ = self._guided(prior_BZ, *conditions, chunk)
        prior_BZ = self._prior.with_labels(prior_BZ, samples.labels.cpu())
        code_logits = networks.discriminate(z_BZ, *conditions)
        prior_logits = networks.discriminate(prior_BZ.to(self._world.device), *conditions)
        absent = errors.new_full((len(errors), self._num_parts), torch.nan)
        scored = ScoredRows(
            readable=readable,
            labels=samples.labels,
            squared_errors=errors,
            code_logits=absent if code_logits is None else code_logits,
            prior_logits=absent if prior_logits is None else prior_logits,
            codes=z_BZ,
        )
        return [scored.pack(), *features]

    def _guided(self, prior_BZ: Tensor, labels_B: Tensor, chunk: int) -> Tensor:
        """Return prior samples of the labels' classes; the given ones where there is no label."""
        draw = tensors.keyed_generator(self._seed, "evaluation/modes", chunk)
        known_B = labels_B >= 0
        own_BZ = self._prior.sample_class(labels_B.clamp(min=0), draw)
        return torch.where(known_B[:, None], own_BZ, prior_BZ)

    def _metrics(self, rows: ScoredRows, prior_nZ: Tensor) -> dict[str, float]:
        if len(rows) < metric_names.MIN_SCORED_SAMPLES:
            bad = self._dataset.load(self._indices[:CHUNK]).bad.values()
            raise DataError(
                f"{self._name}: of {self.num_samples} samples {len(rows)} can be read and "
                f"{metric_names.MIN_SCORED_SAMPLES} are needed; "
                "`aae-dist data verify` lists the bad ones"
                + (f"; of the first: {next(iter(bad))}" if bad else ".")
            )
        num_pixels = math.prod(self._dataset.image_shape)
        metrics = reconstruction_metrics(rows.squared_errors, num_pixels)
        if self._linear is None:
            latent_dim = self._prior.latent_dim
            self._linear = linear.linear_baselines(
                self._dataset, self._indices, self._training, latent_dim
            )
            dimension = data_dimension(self._dataset, self._indices, self._seed)
            self._linear |= dimension.metrics("data") if dimension else {}
        metrics |= self._linear
        metrics |= self._scores.measure(rows.codes, prior_nZ)
        metrics["evaluation/score"] = part_scores.combined_score(metrics)
        metrics["data/bad_validation_samples"] = float(self.num_samples - len(rows))
        metrics |= discriminator_metrics(rows)
        if bool(rows.codes.isfinite().all()):
            metrics |= self._of_codes(rows)
        return metrics

    def _of_codes(self, rows: ScoredRows) -> dict[str, float]:
        """Return the intrinsic dimension of the codes, and what clusters say of labels."""
        dimension = intrinsic_dimension(rows.codes, self._seed)
        metrics = dimension.metrics("codes") if dimension else {}
        metrics |= class_scores.probe_errors(rows.codes, rows.labels)
        clusters_nK = self._clusters(rows)
        if clusters_nK is not None:
            metrics |= class_scores.clustering_scores(clusters_nK, rows.labels)
        if self._classes_by is not None and bool((rows.labels >= 0).any()):
            if self._classes_by == "modes" or clusters_nK is None:
                found = class_scores.nearest_class(rows.codes, self._prior)
            else:
                found = clusters_nK.argmax(1)
            metrics["classification/error"] = class_scores.classification_error(found, rows.labels)
        return metrics

    def _clusters(self, rows: ScoredRows) -> Tensor | None:
        """Return the first categorical part of the codes, (n, K); None without one."""
        part = next((part for part in self._prior.parts if part.is_categorical), None)
        return None if part is None else rows.codes[:, part.columns]

    def _of_map(self, networks: Autoencoder, rows: ScoredRows) -> dict[str, float]:
        """Return scores of the map of cluster heads; empty without heads or labels."""
        map_nS = networks.represent(rows.codes)
        known = bool((rows.labels >= 0).any()) and bool(map_nS.isfinite().all())
        if map_nS is rows.codes or not known:
            return {}
        return {"reduction/neighbour_error": class_scores.neighbour_error(map_nS, rows.labels)}

    def _images(
        self, networks: Autoencoder, rows: ScoredRows, shown_kZ: Tensor, originals: Tensor
    ) -> EvaluationImages:
        """Return the contents of the pictures; `shown_kZ` are the codes of `originals`."""
        device = self._world.device
        prior_mZ = self._prior.sample(
            PRIOR_PICTURED, tensors.keyed_generator(self._seed, "pictures/prior")
        )
        clusters = self._clusters(rows)
        return EvaluationImages(
            codes=networks.represent(rows.codes).float(),
            labels=rows.labels,
            prior_samples=networks.represent(prior_mZ),
            originals=originals,
            reconstructions=networks.decode(shown_kZ.float().to(device), originals).float().cpu(),
            decoded_prior=networks.decode(prior_mZ[:NUM_PICTURED].to(device)).float().cpu(),
            classes=self._classes,
            prior=self._prior,
            clusters=None if clusters is None else clusters.argmax(1),
            class_grid=self._class_grid(networks),
        )

    def _class_grid(self, networks: Autoencoder) -> Tensor | None:
        draw = tensors.keyed_generator(self._seed, "pictures/classes")
        codes_KSZ = class_scores.codes_of_classes(self._prior, NUM_STYLES, draw)
        if codes_KSZ is None or len(codes_KSZ) > MAX_CLASSES_PICTURED:
            return None
        decoded = networks.decode(codes_KSZ.flatten(0, 1).to(self._world.device))
        grid_KSCHW: Tensor = decoded.float().cpu().unflatten(0, codes_KSZ.shape[:2])
        return grid_KSCHW


def discriminator_metrics(rows: ScoredRows) -> dict[str, float]:
    """Return the discriminator's accuracy on codes and on prior samples; empty without one.

    With several parts it is the mean over parts, and that of each.
    """
    if bool((rows.code_logits.isnan() & rows.prior_logits.isnan()).all()):
        return {}
    right = {"codes": rows.code_logits <= 0, "prior": rows.prior_logits > 0}
    shares = {n: mask.double().mean(0).tolist() for n, mask in right.items()}
    names = {name: f"discriminator/accuracy_{name}" for name in right}
    metrics = {names[name]: sum(share) / len(share) for name, share in shares.items()}
    if len(shares["codes"]) == 1:
        return metrics
    each = [{names[n]: shares[n][part] for n in names} for part in range(len(shares["codes"]))]
    return metrics | part_scores.numbered(each)


def _gather_in_order(rows: Tensor, num_samples: int, world: World) -> Tensor:
    """Return all n samples' rows in order, float64 [n, columns], on rank 0; nothing on the others.

    `rows` are this rank's chunks, [chunks, CHUNK, columns]; chunk i of all sits at rank i % R. Rows
    beyond `num_samples` are padding.
    """
    if world.size == 1:
        return rows.flatten(0, 1)[:num_samples]
    sent = rows.to(world.device)
    received: list[Any] | None = None
    if world.is_main:
        received = [torch.empty_like(sent) for _ in range(world.size)]
    dist.gather(sent, received)
    if received is None:
        return rows[:0, 0]
    return torch.stack(received, dim=1).flatten(0, 2)[:num_samples].cpu()


def as_floats(images: Tensor) -> Tensor:
    """Return images as floats, bytes as numbers in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def squared_errors(reconstructions_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Return each image's summed squared error over its pixels, float64 [B].

    Images are uint8, or floats of the range that the decoder has.
    """
    originals = images_BCHW.to(reconstructions_BCHW.dtype)
    if images_BCHW.dtype == torch.uint8:
        originals = originals / 255
    difference = (reconstructions_BCHW - originals).flatten(1).double()
    return difference.square().sum(1)


def reconstruction_metrics(squared_errors_n: Tensor, num_pixels: int) -> dict[str, float]:
    """Return the reconstruction metrics of n images with `num_pixels` values (C*H*W) each.

    `reconstruction/mse` is per pixel value, `reconstruction/sum_half` half the sum per image.
    """
    mean = squared_errors_n.to(torch.float64).mean().item()
    return {"reconstruction/mse": mean / num_pixels, "reconstruction/sum_half": mean / 2}
