"""The base of priors p(z)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Prior(ABC):
    """A distribution over latent codes that can be sampled.

    Shapes: N samples, Z latent_dim. Samples are float32 on the CPU; the caller moves them.
    """

    num_classes: int | None = None
    """Number of classes that `sample_class` knows; None when the prior has none."""

    def __init__(self, latent_dim: int) -> None:
        """Store the number of dimensions."""
        self.latent_dim = latent_dim

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z), from `generator` alone."""

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one sample, shape (N, Z), of each given class; int64 labels in [0, num_classes)."""
        raise TypeError(f"{type(self).__name__} has no classes to sample from")

    def log_prob(self, z_NZ: Tensor) -> Tensor | None:
        """Return log p(z) in nats, shape (N), or None where the density is not known."""
        return None
