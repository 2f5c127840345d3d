"""The base of training methods: phases, each with its optimizer, and one step over them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from aae_dist.distributed.optimizer import SynchronizedOptimizer, Terms
from aae_dist.distributed.world import World
from aae_dist.methods.inputs import MicroBatch
from aae_dist.models import Posterior, run_encoder
from aae_dist.priors import Prior

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


@dataclass(frozen=True)
class Encoded:
    """A part of the batch with its codes; `z_BZ` carries the encoder's graph if it was kept."""

    part: MicroBatch
    noise_BN: Tensor
    z_BZ: Tensor


class Method(ABC):
    """One way to train an autoencoder. The loop, checkpoints and metrics know only this.

    A class is made with the fields of its configuration section as keyword arguments.
    """

    phases: ClassVar[Mapping[str, tuple[str, ...]]]
    """Phase name -> names of the networks it trains, in the order of the step."""

    def __init__(self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer]) -> None:
        """Store the modules, and one optimizer per phase."""
        self.modules = modules
        self.optimizers = dict(optimizers)

    @abstractmethod
    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Run every phase once on a global batch; `parts` are this rank's micro-batches of it."""

    def set_progress(self, progress: float) -> None:
        """Set every phase's learning rate for progress = samples seen / samples planned."""
        for optimizer in self.optimizers.values():
            optimizer.set_progress(progress)

    def encode(self, part: MicroBatch, noise_BN: Tensor) -> Tensor:
        """Return codes of shape (B, Z), drawn from q(z|x) with the given noise."""
        modules = self.modules
        outputs_BP = run_encoder(modules.encoder, modules.posterior, part.x_BCHW, noise_BN)
        return modules.posterior.sample(outputs_BP, noise_BN)

    def encode_once(
        self, parts: Sequence[MicroBatch], noise_of: Callable[[MicroBatch], Tensor]
    ) -> list[Encoded]:
        """Encode all parts, for several uses of the same codes: nothing trains between them.

        With micro-batches the graphs of all parts would not fit in memory, which is why there are
        micro-batches; a phase that needs gradients encodes each part again (`with_graph`).
        """
        with torch.set_grad_enabled(len(parts) == 1):
            return [Encoded(p, noise_of(p), self.encode(p, noise_of(p))) for p in parts]

    def with_graph(self, encoded: Encoded) -> Tensor:
        """Return the codes with the encoder's graph; encode again if it was not kept."""
        if encoded.z_BZ.requires_grad:
            return encoded.z_BZ
        return self.encode(encoded.part, encoded.noise_BN)

    def reconstruction_loss(self, part: MicroBatch) -> Tensor:
        """Return the weighted reconstruction error of decoder(encoder(x)), a scalar."""
        z_BZ = self.encode(part, part.noise_reconstruction_BN)
        return self.reconstruction_error(part, z_BZ)

    def reconstruction_error(self, part: MicroBatch, z_BZ: Tensor) -> Tensor:
        """Return the weighted error of decoding `z_BZ` against the part's images, a scalar."""
        x_hat_BCHW = self.modules.decoder(z_BZ)
        return part.weights_B @ self.modules.reconstruction_loss(x_hat_BCHW, part.x_BCHW)
