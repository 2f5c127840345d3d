"""Convolutional encoder and decoder, plain or residual, for images of any size and channels.

The encoder halves the image (3 x 3 convolutions of stride 2) until its shorter side has at most 4
pixels, which a linear layer turns into the outputs; the decoder goes the same way back (4 x 4
transposed convolutions of stride 2, cropped where a side was odd). Normalisation is by groups, so
that no sample depends on its batch, and no buffer on its rank.

Shapes: B samples, C H W image, N noise numbers per sample, P posterior parameters, Z latent_dim.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from aae_dist.models.mlp import SampleShape, exact

SMALLEST_SIDE = 4
MOST_WIDENING = 8
GROUPS = 8

Size = tuple[int, int]


def sizes_of(size: Size) -> list[Size]:
    """Return the sizes (H, W) of an image at every resolution, the image's own first."""
    sizes = [size]
    while min(sizes[-1]) > SMALLEST_SIDE:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def widths_of(width: int, num_halvings: int) -> list[int]:
    """Return the channels after each halving: doubled each time, up to 8 times the first."""
    return [width * min(2**level, MOST_WIDENING) for level in range(num_halvings)]


def norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with up to 8 groups."""
    return nn.GroupNorm(math.gcd(channels, GROUPS), channels)


def same(channels: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that keeps size and channels."""
    return nn.Conv2d(channels, channels, 3, padding=1)


class Block(nn.Module):
    """The layers at one resolution: a convolution, or two with a shortcut around them."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        layers: list[nn.Module] = [norm(channels), nn.SiLU(), same(channels)]
        if residual:  # He et al. 2016, arXiv 1603.05027: normalise and activate before each
            layers += [norm(channels), nn.SiLU(), same(channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.residual else y_BCHW


def num_blocks(depth: int, residual: bool) -> int:
    """Return the blocks next to the halving or doubling convolution, which a plain depth counts."""
    return depth if residual else depth - 1


class ConvEncoder(nn.Module):
    """x -> parameters of q(z|x), or (x, noise) -> z for a universal posterior.

    Args:
        sample_shape: (C, H, W).
        num_outputs: P.
        width: channels after the first halving, doubled by each further one up to 8 times.
        depth: convolutions, or residual blocks, per resolution.
        residual: whether blocks have a shortcut.
        noise_dim: N, of noise that the encoder reads; 0 for none.
    """

    def __init__(
        self,
        sample_shape: SampleShape,
        num_outputs: int,
        width: int = 32,
        depth: int = 1,
        residual: bool = False,
        noise_dim: int = 0,
    ) -> None:
        super().__init__()
        channels, *size = sample_shape
        sizes = sizes_of((size[0], size[1]))
        # Noise comes as constant planes: convolutions then bend it as much as the image.
        channels += noise_dim
        layers: list[nn.Module] = []
        # An image of 4 pixels or less is widened without halving it.
        strides = [2] * (len(sizes) - 1) or [1]
        for out, stride in zip(widths_of(width, len(strides)), strides, strict=True):
            layers += [norm(channels), nn.SiLU()] if layers else []
            layers += [nn.Conv2d(channels, out, 3, stride=stride, padding=1)]
            layers += [Block(out, residual) for _ in range(num_blocks(depth, residual))]
            channels = out
        self.layers = nn.Sequential(*layers, norm(channels), nn.SiLU())
        self.output = nn.Linear(channels * math.prod(sizes[-1]), num_outputs)
        self.to(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor, noise_BN: Tensor | None = None) -> Tensor:
        """Map images in [0, 1] to posterior parameters of shape (B, P)."""
        if noise_BN is not None:
            planes = noise_BN[:, :, None, None].expand(-1, -1, *x_BCHW.shape[2:])
            x_BCHW = torch.cat([x_BCHW, planes], 1)
        features: Tensor = self.layers(x_BCHW.contiguous(memory_format=torch.channels_last))
        return exact(self.output, features.flatten(1), x_BCHW.dtype)


class Doubling(nn.Module):
    """A transposed convolution to twice the size, cropped to the one wanted."""

    def __init__(self, channels: int, out: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.layer = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H / 2, W / 2) to (B, out, H, W)."""
        y_BCHW: Tensor = self.layer(x_BCHW)
        return y_BCHW[..., : self.size[0], : self.size[1]]


class ConvDecoder(nn.Module):
    """z -> x.

    Args:
        latent_dim: Z.
        sample_shape: (C, H, W).
        width: channels at the largest resolution but the image's own; as for `ConvEncoder`.
        depth: convolutions, or residual blocks, per resolution.
        residual: whether blocks have a shortcut.
        sigmoid: whether outputs are in [0, 1]; else they are not bounded.
    """

    def __init__(
        self,
        latent_dim: int,
        sample_shape: SampleShape,
        width: int = 32,
        depth: int = 1,
        residual: bool = False,
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        channels, *size = sample_shape
        *larger, smallest = sizes_of((size[0], size[1]))
        outs = [channels, *widths_of(width, max(1, len(larger)))]
        self.small = (outs[-1], *smallest)
        self.input = nn.Linear(latent_dim, math.prod(self.small))
        layers = list(self._layers(outs, larger, num_blocks(depth, residual), residual))
        self.layers = nn.Sequential(*layers)
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _layers(
        outs: list[int], larger: list[Size], blocks: int, residual: bool
    ) -> Iterable[nn.Module]:
        for level in reversed(range(len(outs) - 1)):
            yield from (Block(outs[level + 1], residual) for _ in range(blocks))
            yield from (norm(outs[level + 1]), nn.SiLU())
            if larger:
                yield Doubling(outs[level + 1], outs[level], larger[level])
            else:
                yield nn.Conv2d(outs[level + 1], outs[level], 3, padding=1)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes to images of shape (B, C, H, W), in [0, 1] behind a sigmoid."""
        small = self.input(z_BZ).unflatten(1, self.small)
        logits_BCHW = self.layers(small.contiguous(memory_format=torch.channels_last))
        # As in MlpDecoder: a sigmoid in bfloat16 soon has no gradient.
        x_BCHW: Tensor = self.output(logits_BCHW.to(z_BZ.dtype))
        return x_BCHW
