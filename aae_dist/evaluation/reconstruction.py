"""How far reconstructions are from their originals."""

import torch
from torch import Tensor


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


def metrics(squared_errors_n: Tensor, num_pixels: int) -> dict[str, float]:
    """Return the reconstruction metrics of n images with `num_pixels` values (C*H*W) each.

    `reconstruction/mse` is per pixel value, `reconstruction/sum_half` half the sum per image.
    """
    mean = squared_errors_n.to(torch.float64).mean().item()
    return {"reconstruction/mse": mean / num_pixels, "reconstruction/sum_half": mean / 2}
