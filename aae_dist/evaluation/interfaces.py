"""What evaluation needs of trained networks and of a data set."""

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class EvaluationModel(Protocol):
    """Trained networks as evaluation calls them, on the rank's device, without gradients.

    Codes come in any float dtype; the model casts them to its own.
    """

    def encode(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Return codes [B, Z] of uint8 or float images; noise is drawn from `generator` (CPU)."""

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Return images [B, C, H, W]; in [0, 1] unless model.decoder_output=linear."""

    def discriminate(self, z_BZ: Tensor) -> Tensor | None:
        """Return logits [B], positive for the prior, or None where there is no discriminator."""


class Counted(Protocol):
    """A manifest, as far as evaluation is concerned."""

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""


class Loaded(Protocol):
    """Samples, as far as evaluation is concerned."""

    @property
    def images(self) -> Tensor:
        """uint8 or float32 [n, C, H, W]; zeros where the sample is bad."""

    @property
    def labels(self) -> Tensor:
        """int64 [n], -1 where absent."""

    @property
    def bad(self) -> Mapping[int, Exception]:
        """Row -> why its sample cannot be read."""


class EvaluationData(Protocol):
    """A dataset, as far as evaluation is concerned."""

    @property
    def manifest(self) -> Counted:
        """What the shards hold."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    def load(self, indices: NDArray[np.int64], workers: Executor | None = None) -> Loaded:
        """Return the samples of these numbers; `workers` are threads that share the decoding."""
