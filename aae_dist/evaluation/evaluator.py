"""Evaluation over all ranks, with bitwise the same metrics for any number of them.

The validation samples are cut in fixed chunks of 256; chunk i is encoded by rank i % R as a batch
of its own, so no product's shape depends on R. Rank 0 gathers the rows in order, computes all
statistics and broadcasts the metrics. Samples that cannot be read are skipped and counted.
"""

import math
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.distributed.collectives import run_on_all_ranks, run_on_rank_zero
from aae_dist.distributed.world import World
from aae_dist.errors import DataError
from aae_dist.evaluation.interfaces import EvaluationData, EvaluationModel, Loaded
from aae_dist.evaluation.null_baseline import PriorBaseline, build_baseline, score
from aae_dist.priors import Prior
from aae_dist.utils import seeds
from aae_dist.utils.arrays import evenly_spaced

CHUNK = 256
MAX_SAMPLES = 10_000
MIN_SAMPLES = 8
NUM_PICTURED = 32
PRIOR_PICTURED = 5000
"""Prior samples behind the codes in pictures: their density stands however few the codes."""


@dataclass(frozen=True)
class EvaluationImages:
    """What one evaluation's pictures show, on the CPU; n samples are scored, k at most pictured."""

    codes: Tensor
    """Float32 [n, Z]."""
    labels: Tensor
    """int64 [n], -1 where absent."""
    prior_samples: Tensor
    """Float32 [m, Z]."""
    originals: Tensor
    """uint8 or float32 [k, C, H, W], spread evenly over the scored samples."""
    reconstructions: Tensor
    """Float32 [k, C, H, W]; in [0, 1] unless model.decoder_output=linear."""
    decoded_prior: Tensor
    """Float32 [k, C, H, W]: the first k prior samples, decoded."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation."""

    metrics: dict[str, float]
    """The same on every rank."""
    gallery: EvaluationImages | None
    """Rank 0's material for pictures; None on the others."""


class Evaluator:
    """Scores networks on one validation set; measures the prior's null once, on first use."""

    def __init__(
        self,
        dataset: EvaluationData,
        prior: Prior,
        world: World,
        seed: int,
        max_samples: int = MAX_SAMPLES,
        name: str = "data.validation",
        threads: int = 1,
    ) -> None:
        """Fix which validation samples are scored: at most `max_samples`, spread evenly over all.

        Errors call the data set by its `name`. `threads` share the decoding of this rank's samples.

        Raises:
            DataError: there are too few samples to score.
        """
        total = dataset.manifest.num_samples
        self.num_samples = min(total, max_samples)
        if self.num_samples < MIN_SAMPLES:
            raise DataError(
                f"{name}: {total} samples are too few to score the match with the prior. "
                f"Give at least {MIN_SAMPLES}, better 10,000."
            )
        self._indices = evenly_spaced(self.num_samples, total)
        self._dataset, self._prior, self._world, self._seed = dataset, prior, world, seed
        self._name = name
        self._threads = threads
        self._baseline: PriorBaseline | None = None

    @torch.no_grad()
    def evaluate(self, networks: EvaluationModel) -> Evaluation:
        """Score the networks; a collective: every rank calls it at the same step.

        Raises:
            DataError: too few validation samples could be read.
        """
        draw = seeds.generator(self._seed, "evaluation/prior")
        prior_nZ = self._prior.sample(self.num_samples, draw)
        rows = run_on_all_ranks(self._world, lambda: self._encode_all_own(networks, prior_nZ))
        table = _gather_in_order(rows, self.num_samples, self._world)
        readable = table[:, 0] == 1
        good, prior_nZ = table[readable, 1:], prior_nZ[: len(readable)][readable]
        spread = evenly_spaced(NUM_PICTURED, len(good))
        originals: list[Tensor] = []

        def judge() -> dict[str, float]:
            metrics = self._statistics(good, prior_nZ)
            # Read in here, where an error is every rank's.
            numbers = self._indices[readable.numpy()][spread]
            originals.append(self._dataset.load(numbers).images)
            return metrics

        metrics = run_on_rank_zero(self._world, judge)
        if not self._world.is_main:
            return Evaluation(metrics, None)
        return Evaluation(metrics, self._gallery(networks, good, spread, originals[0]))

    def _encode_all_own(self, networks: EvaluationModel, prior_nZ: Tensor) -> Tensor:
        pool = ThreadPoolExecutor(self._threads, "decode") if self._threads > 1 else nullcontext()
        with pool as workers:
            return self._encode_own_chunks(networks, prior_nZ, workers)

    def _encode_own_chunks(
        self, networks: EvaluationModel, prior_nZ: Tensor, workers: Executor | None
    ) -> Tensor:
        """Return this rank's chunks, float64 [chunks of the busiest rank, CHUNK, columns]."""
        chunks = range(self._world.rank, _num_chunks(self.num_samples), self._world.size)
        per_rank = -(-_num_chunks(self.num_samples) // self._world.size)
        table = torch.zeros(per_rank, CHUNK, self._prior.latent_dim + 5, dtype=torch.float64)
        for slot, chunk in enumerate(chunks):
            rows = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_samples))
            samples = self._dataset.load(self._indices[rows], workers)
            part = self._encode_chunk(networks, chunk, samples, prior_nZ[rows])
            table[slot, : len(part)] = part
        return table

    def _encode_chunk(
        self, networks: EvaluationModel, chunk: int, samples: Loaded, prior_BZ: Tensor
    ) -> Tensor:
        """Return a row per sample.

        Its columns: 1 for a sample that could be read, label, squared error, logits of code and of
        prior sample, code.
        """
        images = samples.images.to(self._world.device)
        good = torch.ones(len(images))
        good[list(samples.bad)] = 0
        z_BZ = networks.encode(images, seeds.generator(self._seed, "evaluation/posterior", chunk))
        errors = squared_errors(networks.decode(z_BZ), images)
        logits = networks.discriminate(z_BZ)
        prior_logits = networks.discriminate(prior_BZ.to(self._world.device))
        absent = torch.full_like(errors, torch.nan)
        columns = [
            good,
            samples.labels,
            errors,
            absent if logits is None else logits,
            absent if prior_logits is None else prior_logits,
        ]
        # float64 holds every float32 code, and every label below 2**53, exactly.
        scalars = torch.stack([c.cpu().double() for c in columns], dim=1)
        return torch.cat([scalars, z_BZ.cpu().double()], dim=1)

    def _statistics(self, table: Tensor, prior_nZ: Tensor) -> dict[str, float]:
        """Compute all metrics from the rows of all good samples; rank 0 only."""
        if len(table) < MIN_SAMPLES:
            bad = self._dataset.load(self._indices[:CHUNK]).bad.values()
            raise DataError(
                f"{self._name}: of {self.num_samples} samples {len(table)} can be read and "
                f"{MIN_SAMPLES} are needed; `aae-dist data verify` says what is wrong"
                + (f"; of the first: {next(iter(bad))}" if bad else ".")
            )
        if self._baseline is None or len(self._baseline.prior_samples) != len(table):
            self._baseline = build_baseline(self._prior, len(table), self._seed)
        metrics = reconstruction_metrics(table[:, 1], math.prod(self._dataset.image_shape))
        metrics |= score(table[:, 4:], self._baseline, self._seed)
        metrics["data/bad_validation_samples"] = float(self.num_samples - len(table))
        if not bool(table[:, 2:4].isnan().all()):
            metrics["discriminator/accuracy_codes"] = (table[:, 2] <= 0).double().mean().item()
            metrics["discriminator/accuracy_prior"] = (table[:, 3] > 0).double().mean().item()
        if bool(table[:, 4:].isfinite().all()):
            metrics["codes/smallest_spread"] = smallest_spread(table[:, 4:], prior_nZ.double())
        return metrics

    def _gallery(
        self,
        networks: EvaluationModel,
        table: Tensor,
        spread: NDArray[np.int64],
        originals: Tensor,
    ) -> EvaluationImages:
        """Return what pictures show of the good samples; their rows `spread` are `originals`."""
        device = self._world.device
        prior_mZ = self._prior.sample(PRIOR_PICTURED, seeds.generator(self._seed, "pictures/prior"))
        pictured = table[torch.from_numpy(spread), 4:].float().to(device)
        return EvaluationImages(
            codes=table[:, 4:].float(),
            labels=table[:, 0].long(),
            prior_samples=prior_mZ,
            originals=originals,
            reconstructions=networks.decode(pictured).float().cpu(),
            decoded_prior=networks.decode(prior_mZ[:NUM_PICTURED].to(device)).float().cpu(),
        )


def smallest_spread(codes_nZ: Tensor, prior_nZ: Tensor) -> float:
    """Return the codes' standard deviation over the prior's, each along its flattest direction.

    About 1 for codes that fill the space as the prior does, 0 when they lie in a plane of it.
    """
    flattest = [
        float(torch.linalg.eigvalsh(torch.atleast_2d(z.T.cov()))[0]) for z in (codes_nZ, prior_nZ)
    ]
    return math.sqrt(max(flattest[0], 0.0) / max(flattest[1], 1e-12))


def _num_chunks(num_samples: int) -> int:
    return -(-num_samples // CHUNK)


def _gather_in_order(rows: Tensor, num_samples: int, world: World) -> Tensor:
    """Return all samples' rows in order, float64 [n, columns], on rank 0; nothing on the others.

    Args:
        rows: This rank's chunks, [chunks, CHUNK, columns]; chunk i of all sits at rank i % R.
        num_samples: n; rows beyond are padding.
        world: This process's place among the R ranks.
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


def squared_errors(reconstructions_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Return each image's summed squared error over its pixels, float64 [B].

    Args:
        reconstructions_BCHW: Decoder outputs, float.
        images_BCHW: Originals, uint8, or floats of the range that the decoder has.
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
