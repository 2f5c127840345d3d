"""Fully connected encoder, decoder and discriminator, and the posteriors on top of the encoder.

Shapes: B samples, C H W image, Z latent_dim, P posterior parameters a sample.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

ImageShape = tuple[int, int, int]


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU between them; the last layer is linear."""
    layers: list[nn.Module] = []
    for size_in, size_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(size_in, size_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class MlpEncoder(nn.Module):
    """x -> parameters of q(z|x)."""

    def __init__(self, image_shape: ImageShape, widths: Sequence[int], num_outputs: int) -> None:
        """Take the image shape (C, H, W), hidden layer sizes and the number of outputs P."""
        super().__init__()
        self.layers = fully_connected([math.prod(image_shape), *widths, num_outputs])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to posterior parameters of shape (B, P)."""
        outputs: Tensor = self.layers(x_BCHW.flatten(1))
        return outputs


class MlpDecoder(nn.Module):
    """z -> x."""

    def __init__(
        self, latent_dim: int, widths: Sequence[int], image_shape: ImageShape, sigmoid: bool = True
    ) -> None:
        """Take latent_dim, hidden layer sizes, the image shape, and whether pixels are squashed."""
        super().__init__()
        self.image_shape = image_shape
        self.layers = fully_connected([latent_dim, *widths, math.prod(image_shape)])
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes to images of shape (B, C, H, W), in [0, 1] behind a sigmoid."""
        x_BCHW: Tensor = self.output(self.layers(z_BZ)).unflatten(1, self.image_shape)
        return x_BCHW


class MlpDiscriminator(nn.Module):
    """z -> logit that z is a sample of the prior rather than a code."""

    def __init__(self, latent_dim: int, widths: Sequence[int]) -> None:
        """Take latent_dim and hidden layer sizes."""
        super().__init__()
        self.layers = fully_connected([latent_dim, *widths, 1])

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes or prior samples to logits of shape (B)."""
        logits_B1: Tensor = self.layers(z_BZ)
        return logits_B1.squeeze(1)
