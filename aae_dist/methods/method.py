"""A step's inputs, and the base of training methods: phases, each with its optimizer.

Shapes: B rows on this rank, G rows of the global batch, C H W image, N noise numbers, Z latent_dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from aae_dist.distributed.optimizer import SynchronizedOptimizer, Terms
from aae_dist.distributed.world import World, rows_of_all_ranks
from aae_dist.models import Posterior, cluster_heads, run_encoder
from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator, to_device

_ROWS_AT_ONCE = 1024
"""Rows of the global batch that are drawn from one generator."""


@dataclass(frozen=True)
class Draws:
    """The random draws of one step: the same on every rank, whatever the number of ranks.

    Rows of the global batch are drawn in blocks of 1,024, each keyed by (seed, purpose, step,
    block), block 0 without the last key. A rank draws only the blocks of its rows: with 64 ranks of
    256 rows, drawing all of them would take 15 ms of CPU for every 128 numbers per row.
    """

    seed: int
    step: int
    global_batch_size: int
    device: torch.device
    dtype: torch.dtype

    def generator(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of one purpose."""
        return keyed_generator(self.seed, purpose, self.step)

    def of_rows(
        self, purpose: str, rows: range, draw: Callable[[int, torch.Generator], Tensor]
    ) -> Tensor:
        """Return rows of the global batch, at least one and without gaps, on the device.

        `draw` returns as many independent rows, (num, ...), on the CPU, as it is asked for.
        """
        return to_device(self.on_cpu(purpose, rows, draw), self.device, self.dtype)

    def on_cpu(
        self, purpose: str, rows: range, draw: Callable[[int, torch.Generator], Tensor]
    ) -> Tensor:
        """Return the rows of `of_rows` as they are drawn."""
        first = rows.start // _ROWS_AT_ONCE * _ROWS_AT_ONCE
        blocks = []
        for start in range(first, rows.stop, _ROWS_AT_ONCE):
            keys = (start // _ROWS_AT_ONCE,) if start else ()
            num_rows = min(_ROWS_AT_ONCE, self.global_batch_size - start)
            # Copied: an own prior may return the same tensor each time.
            blocks.append(
                draw(num_rows, keyed_generator(self.seed, purpose, self.step, *keys)).clone()
            )
        return torch.cat(blocks)[rows.start - first : rows.stop - first]

    def normal(self, purpose: str, rows: range, num: int) -> Tensor:
        """Return standard normal noise of shape (B, num) for rows of the global batch."""
        return self.of_rows(purpose, rows, lambda n, draw: torch.randn(n, num, generator=draw))


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, on the device."""

    x_BCHW: Tensor
    """Images in [0, 1]; vectors as they are, (B, D)."""
    weights_B: Tensor
    """ranks / unmasked samples of the global batch; 0 for a masked row and for its prior sample.

    Summed with these weights and averaged over ranks, losses are means over the global batch, also
    when ranks hold different numbers of rows.
    """
    z_prior_BZ: Tensor
    noise_reconstruction_BN: Tensor
    noise_regularization_BN: Tensor
    labels_B: Tensor
    """int64, -1 where a sample has none."""
    rows: range
    """Numbers of the rows in the global batch."""
    draws: Draws
    """Source of all other random numbers of the step."""
    labelled_x_BCHW: Tensor | None = None
    """As many rows of the labelled set; None without one."""
    labelled_B: Tensor | None = None
    """Their labels, int64."""

    @property
    def rows_B(self) -> Tensor:  # noqa: N802 - shapes are in the names
        """Numbers of the rows in the global batch, int64, shape (B), on the device."""
        return torch.arange(self.rows.start, self.rows.stop, device=self.x_BCHW.device)

    def split(self, size: int) -> list["MicroBatch"]:
        """Return consecutive parts of at most `size` rows."""
        columns = {n: c for n, c in vars(self).items() if n != "draws" and c is not None}
        parts = [slice(start, start + size) for start in range(0, len(self.rows), size)]
        return [
            replace(self, **{n: column[part] for n, column in columns.items()}) for part in parts
        ]


@dataclass(frozen=True)
class LabelledSet:
    """Labelled samples that every rank holds, on the CPU; constant during a run."""

    images: Tensor
    """uint8 or float32, (M, C, H, W)."""
    labels: Tensor
    """int64, (M)."""


@dataclass(frozen=True)
class StepInputs:
    """Makes the parts of a step; randomness is keyed by (seed, purpose, step) only.

    Nothing is keyed by rank, so a run does not depend on the number of ranks.
    """

    seed: int
    prior: Prior
    posterior: Posterior
    rows: slice
    global_batch_size: int
    micro_batch_size: int | None
    world: World
    dtype: torch.dtype
    is_guided: bool = False
    """Whether a sample's label chooses the class of its prior sample."""
    labelled: LabelledSet | None = None

    def parts(
        self,
        images: Tensor,
        valid: Tensor,
        num_valid: int,
        step: int,
        labels: Tensor | None = None,
    ) -> list[MicroBatch]:
        """Return this rank's micro-batches.

        Args:
            images: uint8, (B, C, H, W), or floats of any shape (B, ...); this rank's rows.
            valid: bool, (B); masked rows get weight 0.
            num_valid: unmasked samples of the global batch, the same on all ranks.
            step: number of the step, from 0.
            labels: int64, (B), -1 for none; by default no sample has one.
        """
        device = self.world.device
        draws = Draws(self.seed, step, self.global_batch_size, device, self.dtype)
        rows = range(self.rows.start, self.rows.stop)
        noise_dim = self.posterior.noise_dim(self.prior.latent_dim)
        weight = self.world.size / max(num_valid, 1)  # with no good sample all weights are 0
        weights_B = valid.to(device, self.dtype, non_blocking=True) * weight
        if labels is None:
            labels = torch.full((len(images),), -1)
        labels_B = labels.to(device, non_blocking=True)
        part = MicroBatch(
            x_BCHW=self._pixels(images),
            weights_B=weights_B,
            labels_B=labels_B,
            z_prior_BZ=self._prior_samples(draws, rows, labels_B),
            noise_reconstruction_BN=draws.normal("noise of reconstruction", rows, noise_dim),
            noise_regularization_BN=draws.normal("noise of regularization", rows, noise_dim),
            rows=rows,
            draws=draws,
            **self._labelled_rows(draws, rows),
        )
        return part.split(self.micro_batch_size or len(images))

    def _pixels(self, images: Tensor) -> Tensor:
        x = images.to(self.world.device, non_blocking=True).to(self.dtype)
        return x.div_(255) if images.dtype == torch.uint8 else x

    def _prior_samples(self, draws: Draws, rows: range, labels_B: Tensor) -> Tensor:
        """Return a prior sample per row, (B, Z): of the class of its label if labels guide.

        A given part holds the row's own label, so that no frequency of labels is assumed.
        """
        z_BZ = draws.of_rows("prior", rows, self.prior.sample)
        z_BZ = self.prior.with_labels(z_BZ, labels_B)
        if not self.is_guided:
            return z_BZ
        num_classes = self.prior.num_classes
        assert num_classes is not None

        # A block holds rows of other ranks, whose labels are unknown here: one sample per class.
        def of_each(num: int, generator: torch.Generator) -> Tensor:
            each = [torch.full((num,), label) for label in range(num_classes)]
            return torch.stack([self.prior.sample_class(n, generator) for n in each], 1)

        z_BKZ = draws.of_rows("prior of each class", rows, of_each)
        own_BZ = z_BKZ[torch.arange(len(labels_B)), labels_B.clamp(0, num_classes - 1)]
        return torch.where((labels_B >= 0)[:, None], own_BZ, z_BZ)

    def _labelled_rows(self, draws: Draws, rows: range) -> dict[str, Tensor]:
        """Return as many rows of the labelled set, drawn with replacement; none without one."""
        held = self.labelled
        if held is None:
            return {}
        most = len(held.labels)
        chosen_B = draws.on_cpu(
            "labelled samples", rows, lambda n, draw: torch.randint(most, (n,), generator=draw)
        )
        return {
            "labelled_x_BCHW": self._pixels(held.images[chosen_B]),
            "labelled_B": held.labels[chosen_B].to(self.world.device),
        }


Losses = Terms
"""Metric name -> this rank's share of the loss; the mean over ranks is the global loss."""


@dataclass(frozen=True)
class Modules:
    """The networks as a method calls them: data parallel, so that backward averages gradients."""

    encoder: nn.Module
    decoder: nn.Module
    discriminator: nn.Module | None
    posterior: Posterior
    prior: Prior
    reconstruction_loss: Callable[[Tensor, Tensor], Tensor]
    world: World
    image_noise: float = 0.0
    """Standard deviation of the noise that a step adds to the encoder's inputs."""


Distance = Callable[[Tensor, Tensor, Tensor, Draws], Tensor]
"""(codes, prior samples, weights, draws) -> distance, a scalar; see `MatchingMethod.distance`."""


@dataclass(frozen=True)
class Encoded:
    """A part of the batch with its codes; `z_BZ` carries the encoder's graph if it was kept."""

    part: MicroBatch
    noise_BN: Tensor
    z_BZ: Tensor


class Method(ABC):
    """One way to train an autoencoder. The loop, checkpoints and metrics know only this.

    A class is made with the fields of its configuration section as keyword arguments.

    Args:
        modules: the networks, the prior and the loss.
        optimizers: one per phase, by the phase's name.
    """

    phases: ClassVar[Mapping[str, tuple[str, ...]]]
    """Phase name -> names of the networks it trains, in the order of the step."""

    def __init__(self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer]) -> None:
        self.modules, self.optimizers = modules, dict(optimizers)
        self.heads = cluster_heads(modules.decoder)
        self.codes: dict[int, tuple[Tensor, Tensor]] = {}
        """By first row of a micro-batch: weights (B) and codes (B, Z) that the step drew last."""

    @abstractmethod
    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Run every phase once on a global batch; `parts` are this rank's micro-batches of it."""

    def set_progress(self, progress: float) -> None:
        """Set every phase's learning rate for progress = samples seen / samples planned."""
        for optimizer in self.optimizers.values():
            optimizer.set_progress(progress)

    def encode(self, part: MicroBatch, noise_BN: Tensor) -> Tensor:
        """Return codes of shape (B, Z) of a part of the batch, from q(z|x) with the given noise."""
        modules = self.modules
        x_BCHW = self.with_image_noise(part, part.x_BCHW)
        outputs_BP = run_encoder(
            modules.encoder, modules.posterior, x_BCHW, noise_BN, part.labels_B
        )
        return self.observed(part, modules.posterior.sample(outputs_BP, noise_BN))

    def with_image_noise(self, part: MicroBatch, x_BCHW: Tensor, what: str = "images") -> Tensor:
        """Return the encoder's input: images (B, C, H, W) of a part of the batch, plus noise.

        The same noise in every phase, and another for another `what`. The target of reconstruction
        stays clean (denoising: Vincent et al. 2008).
        """
        if not self.modules.image_noise:
            return x_BCHW
        noise = part.draws.normal(f"noise on {what}", part.rows, x_BCHW[0].numel())
        return x_BCHW + self.modules.image_noise * noise.view_as(x_BCHW)

    def observed(self, part: MicroBatch, z_BZ: Tensor) -> Tensor:
        """Return a part's codes (B, Z) as they are; keep them for the statistics of a log point."""
        self.codes[part.rows.start] = (part.weights_B, z_BZ.detach())
        return z_BZ

    def encode_once(
        self, parts: Sequence[MicroBatch], noise_of: Callable[[MicroBatch], Tensor]
    ) -> list[Encoded]:
        """Encode all parts, for several uses of the same codes: nothing trains between them.

        `noise_of` returns the noise of a part, (B, N).
        """
        # With micro-batches the graphs of all parts would not fit in memory, which is why there are
        # micro-batches; a phase that needs gradients encodes each part again (`with_graph`).
        with torch.set_grad_enabled(len(parts) == 1):
            return [Encoded(p, noise_of(p), self.encode(p, noise_of(p))) for p in parts]

    def with_graph(self, encoded: Encoded) -> Tensor:
        """Return the codes (B, Z) of an encoded part with the encoder's graph.

        If it was not kept, encode again.
        """
        if encoded.z_BZ.requires_grad:
            return encoded.z_BZ
        return self.encode(encoded.part, encoded.noise_BN)

    def reconstruct(self, parts: Sequence[MicroBatch]) -> Losses:
        """Minimise the reconstruction error of all parts of the batch by one update."""
        loss = self.optimizers["reconstruction"].update(self.reconstruction_loss, parts)
        return {"loss/reconstruction": loss}

    def reconstruction_loss(self, part: MicroBatch) -> Tensor:
        """Return the weighted reconstruction error of decoder(encoder(x)) of a part, a scalar."""
        z_BZ = self.encode(part, part.noise_reconstruction_BN)
        return self.reconstruction_error(part, z_BZ)

    def reconstruction_error(self, part: MicroBatch, z_BZ: Tensor) -> Tensor:
        """Return the weighted error of decoding a part's codes, plus heads' penalty: a scalar."""
        x_hat_BCHW = self.modules.decoder(z_BZ)
        error = part.weights_B @ self.modules.reconstruction_loss(x_hat_BCHW, part.x_BCHW)
        if self.heads is None:
            return error
        # The weights of all micro-batches and ranks sum to the number of ranks: the penalty once.
        return error + part.weights_B.sum() * self.heads.penalty()

    # Matching: the distance is a statistic of the whole global batch, not a mean of what ranks or
    # micro-batches could compute on their own. Every rank gathers all codes, computes the distance
    # and its gradient with respect to them, which are small compared with the networks, and moves
    # its own codes along that gradient: exact for any number of ranks and micro-batches.

    def reconstruct_and_match(
        self, parts: Sequence[MicroBatch], distance: Distance, weight: float
    ) -> Losses:
        """Minimise reconstruction error + weight * distance(codes, prior samples) by one update.

        Both are of all `parts` of the batch.
        """
        encoded = self.encode_once(parts, lambda part: part.noise_reconstruction_BN)
        value, pull_GZ = self.distance_and_gradient(encoded, distance)
        terms = self.optimizers["reconstruction"].update_terms(
            lambda part: self.loss_with_pull(part, pull_GZ, weight), encoded
        )
        return {**terms, "loss/distance": value}

    def distance_and_gradient(
        self, encoded: Sequence[Encoded], distance: Distance
    ) -> tuple[Tensor, Tensor]:
        """Return the distance, a scalar, and its gradient with respect to all codes, (G, Z).

        The `encoded` parts are this rank's; codes of all ranks are gathered.
        """
        table = torch.cat([_row(c) for c in encoded])
        rows = torch.cat([c.part.rows_B for c in encoded])
        draws = encoded[0].part.draws
        world = self.modules.world
        all_rows = rows_of_all_ranks(table, rows, draws.global_batch_size, world)
        z_GZ, prior_GZ = (half.contiguous() for half in all_rows[:, 1:].chunk(2, dim=1))
        z_GZ.requires_grad_()
        with torch.enable_grad():
            value = distance(z_GZ, prior_GZ, all_rows[:, 0] / world.size, draws)
        (gradient_GZ,) = torch.autograd.grad(value, z_GZ)
        return value.detach(), gradient_GZ

    def loss_with_pull(
        self, encoded: Encoded, pull_GZ: Tensor, weight: float
    ) -> tuple[Tensor, Losses]:
        """Return a scalar with the gradient of reconstruction error + weight * distance.

        It is that of one `encoded` part. `pull_GZ` is the gradient of the distance with respect to
        all codes.
        """
        z_BZ = self.with_graph(encoded)
        error = self.reconstruction_error(encoded.part, z_BZ)
        pull = (pull_GZ[encoded.part.rows_B] * z_BZ).sum()
        # DDP averages gradients over ranks, but each rank pulls codes of its own: sum them instead.
        loss = error + weight * self.modules.world.size * pull
        return loss, {"loss/reconstruction": error.detach()}


def _row(encoded: Encoded) -> Tensor:
    part = encoded.part
    return torch.cat([part.weights_B[:, None], encoded.z_BZ.detach(), part.z_prior_BZ], 1)
