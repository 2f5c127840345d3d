"""Random changes of training images: flip, crop, colour; a whole batch at once, on its device.

The change of a sample is a function of (seed, epoch, sample number) alone: the same for any number
of ranks, threads and batch sizes, and after a resume. Shapes: B rows, C H W image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.config.sections.run import Augment
from aae_dist.data.loader import Batch
from aae_dist.data.order import Indices, mixed
from aae_dist.utils.tensors import derived_seed, to_device

NUM_DRAWS = 6
_FLIP, _DOWN, _RIGHT, _BRIGHTNESS, _CONTRAST, _SATURATION = range(NUM_DRAWS)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64's counter: 2**64 over the golden ratio."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def uniforms(seed: int, epoch: int, indices: Indices) -> NDArray[np.float32]:
    """Return numbers in [0, 1), float32 (B, NUM_DRAWS), keyed by seed, epoch and sample number.

    The counter-based generator SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195):
    without state, so the numbers of any sample can be computed by themselves.
    """
    key = np.uint64(derived_seed(seed, "augmentation", epoch))
    numbers = indices.astype(np.int64)[:, None] * NUM_DRAWS + np.arange(NUM_DRAWS)
    counters = numbers.astype(np.uint64)
    # Mixed twice: after one mix the counters of neighbouring keys would overlap.
    bits = mixed((mixed(counters + _GAMMA) ^ key) + _GAMMA)
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


@dataclass(frozen=True)
class Augmenter:
    """Changes batches as the settings say."""

    settings: Augment
    seed: int
    rows: slice
    """This rank's rows of each global batch."""

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches with their images changed."""
        for batch in batches:
            draws = uniforms(self.seed, batch.plan.epoch, batch.plan.indices[self.rows])
            u_BK = to_device(torch.from_numpy(draws), batch.images.device)
            yield replace(batch, images=self.images(batch.images, u_BK))

    def images(self, images_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Return changed images of the same shape and type, uint8 or float in [0, 1]."""
        images_BCHW = self._placed(images_BCHW, u_BK)
        wanted = self.settings
        if not (wanted.brightness or wanted.contrast or wanted.saturation):
            return images_BCHW
        is_uint8 = images_BCHW.dtype == torch.uint8
        x_BCHW = self._coloured(images_BCHW.float() / 255 if is_uint8 else images_BCHW, u_BK)
        return (x_BCHW * 255).round().to(torch.uint8) if is_uint8 else x_BCHW

    def _placed(self, images_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Shift by up to `crop` pixels, the border repeated, and mirror half of the images."""
        batch, channels, height, width = images_BCHW.shape
        crop, device = self.settings.crop, images_BCHW.device
        if not (crop or self.settings.flip):
            return images_BCHW
        # A slice: a list of columns would be copied to the device, and synchronize with it.
        shift_B2 = (u_BK[:, _DOWN : _RIGHT + 1] * (2 * crop + 1)).long() - crop
        rows_BH = torch.arange(height, device=device) + shift_B2[:, :1]
        columns_BW = torch.arange(width, device=device) + shift_B2[:, 1:]
        if self.settings.flip:
            mirrored = u_BK[:, _FLIP, None] < 0.5
            columns_BW = torch.where(mirrored, columns_BW.flip(1), columns_BW)
        numbers = torch.arange(batch, device=device)[:, None, None, None]
        return images_BCHW[
            numbers,
            torch.arange(channels, device=device)[:, None, None],
            rows_BH.clamp(0, height - 1)[:, None, :, None],
            columns_BW.clamp(0, width - 1)[:, None, None, :],
        ]

    def _coloured(self, x_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Scale brightness, contrast around the image's mean, and saturation around grey."""

        def factor(draw: int, strength: float) -> Tensor:
            return 1 + strength * (2 * u_BK[:, draw, None, None, None] - 1)

        x_BCHW = (x_BCHW * factor(_BRIGHTNESS, self.settings.brightness)).clamp(0, 1)
        mean = x_BCHW.mean((1, 2, 3), keepdim=True)
        x_BCHW = (mean + (x_BCHW - mean) * factor(_CONTRAST, self.settings.contrast)).clamp(0, 1)
        if x_BCHW.shape[1] != 3:
            return x_BCHW
        luma = to_device(torch.tensor(_LUMA), x_BCHW.device, x_BCHW.dtype)[:, None, None]
        grey = (x_BCHW * luma).sum(1, keepdim=True)
        saturation = factor(_SATURATION, self.settings.saturation)
        return (grey + (x_BCHW - grey) * saturation).clamp(0, 1)
