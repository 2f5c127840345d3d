"""Images brought to one size as they are decoded: cropped, scaled, or refused.

Pillow scales with fixed-point arithmetic in one thread, so pixels are equal on every machine and
with any number of threads, and equal to what `aae-dist data pack --image-size` writes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aae_dist.config.sections.data import Data
from aae_dist.errors import SampleError

FILTER = Image.Resampling.LANCZOS
"""Averages all pixels that fall into a new one, so shrinking makes no moiré."""


@dataclass(frozen=True)
class Resize:
    """How images are brought to the size of a run (see `data.resize` and `data.crop_size`)."""

    how: Literal["cover", "stretch", "crop", "none"]
    crop_size: int | None
    is_settled: bool = False
    """Whether `none` is configured, or comes from a trained run: a size then changes nothing."""

    @classmethod
    def from_settings(cls, settings: Data) -> "Resize":
        """Return the resizing that the run's `data` section describes."""
        how = settings.resize or ("cover" if settings.image_size else "none")
        return cls(how, settings.crop_size, is_settled=settings.resize == "none")

    def cropped(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image cropped to `crop_size`; SampleError if it is smaller.

        Args:
            height: of the file's image, in pixels.
            width: of the file's image, in pixels.
        """
        size = self.crop_size
        if size is None:
            return height, width
        if size > min(height, width):
            raise _wrong_size(height, width, f"data.crop_size={size} needs larger ones")
        return size, size

    def check(self, height: int, width: int, wanted: tuple[int, int]) -> None:
        """Raise SampleError, before it is decoded, if this image cannot become (H, W) `wanted`."""
        inner = self.cropped(height, width)
        if inner == wanted or self.how in ("cover", "stretch"):
            return
        if self.how == "none":
            key = "data.resize=cover" if self.is_settled else "data.image_size"
            raise _wrong_size(
                height, width, f"wanted {wanted[0]} x {wanted[1]}; give {key} to bring all images "
                "to one size"
            )  # fmt: skip
        if inner[0] < wanted[0] or inner[1] < wanted[1]:
            raise _wrong_size(
                height, width, f"data.resize=crop cuts {wanted[0]} x {wanted[1]} from larger ones; "
                "use data.resize=cover"
            )  # fmt: skip

    def apply(self, image: NDArray[np.uint8], wanted: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a checked image [C, H, W] at the (H, W) `wanted`."""
        image = _centre(image, self.cropped(*image.shape[1:]))
        if image.shape[1:] == wanted:
            return image
        if self.how == "crop":
            return _centre(image, wanted)
        return scaled(image, wanted, cover=self.how == "cover")


def scaled(image: NDArray[np.uint8], wanted: tuple[int, int], *, cover: bool) -> NDArray[np.uint8]:
    """Return an image [C, H, W] with one or three channels at another (H, W).

    Args:
        image: pixels.
        wanted: (H, W).
        cover: keep the proportions and crop the longer side; else stretch.
    """
    plain = Image.fromarray(
        image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    )
    size = (wanted[1], wanted[0])
    done = ImageOps.fit(plain, size, FILTER) if cover else plain.resize(size, FILTER)
    pixels = np.array(done).reshape(*wanted, len(image))
    return pixels.transpose(2, 0, 1)


def _centre(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[1:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]


def _wrong_size(height: int, width: int, problem: str) -> SampleError:
    return SampleError(f"the image is {height} x {width} pixels, {problem}", reason="size")
