"""Convolutional encoder and decoder, plain or residual, of signals, images or volumes of any size.

The encoder halves the sample (convolutions of 3 per side and stride 2) until its shortest side has
at most 4 pixels, which a linear layer turns into the outputs; the decoder goes the same way back
(transposed convolutions of 4 per side and stride 2, cropped where a side was odd). Normalisation is
by groups, so that no sample depends on its batch, and no buffer on its rank.

Shapes: B samples, C H W image (C L of signals, C D H W of volumes), N noise numbers per sample, P
posterior parameters, Z latent_dim.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from aae_dist.models.mlp import SampleShape, exact

SMALLEST_SIDE = 4
MOST_WIDENING = 8
GROUPS = 8

Size = tuple[int, ...]
"""(H, W) of images, (L,) of signals, (D, H, W) of volumes."""
CONVOLUTIONS: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
TRANSPOSED: Mapping[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def sizes_of(size: Size) -> list[Size]:
    """Return the sizes of a sample at every resolution, its own first."""
    sizes = [tuple(size)]
    while min(sizes[-1]) > SMALLEST_SIDE:
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


def in_fast_memory(x: Tensor) -> Tensor:
    """Return images with their channels last, and all else contiguous."""
    is_images = x.ndim == 4
    return x.contiguous(memory_format=torch.channels_last if is_images else torch.contiguous_format)


def widths_of(width: int, num_halvings: int) -> list[int]:
    """Return the channels after each halving: doubled each time, up to 8 times the first."""
    return [width * min(2**level, MOST_WIDENING) for level in range(num_halvings)]


def norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with up to 8 groups."""
    return nn.GroupNorm(math.gcd(channels, GROUPS), channels)


def convolution(num_sides: int, channels: int, out: int, stride: int = 1) -> nn.Module:
    """Return a convolution of 3 per side that keeps the size, or halves it with stride 2."""
    return CONVOLUTIONS[num_sides](channels, out, 3, stride=stride, padding=1)


class Block(nn.Module):
    """The layers at one resolution: a convolution, or two with a shortcut around them."""

    def __init__(self, num_sides: int, channels: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        layers: list[nn.Module] = []
        # Residual, He et al. 2016, arXiv 1603.05027: normalise and activate before each.
        for _ in range(2 if residual else 1):
            layers += [norm(channels), nn.SiLU(), convolution(num_sides, channels, channels)]
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
        sizes, num_sides = sizes_of(tuple(size)), len(size)
        # Noise comes as constant planes: convolutions then bend it as much as the image.
        channels += noise_dim
        layers: list[nn.Module] = []
        # An image of 4 pixels or less is widened without halving it.
        strides = [2] * (len(sizes) - 1) or [1]
        for out, stride in zip(widths_of(width, len(strides)), strides, strict=True):
            layers += [norm(channels), nn.SiLU()] if layers else []
            layers += [convolution(num_sides, channels, out, stride)]
            layers += [Block(num_sides, out, residual) for _ in range(num_blocks(depth, residual))]
            channels = out
        self.layers = nn.Sequential(*layers, norm(channels), nn.SiLU())
        self.output = nn.Linear(channels * math.prod(sizes[-1]), num_outputs)
        if num_sides == 2:
            self.to(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor, noise_BN: Tensor | None = None) -> Tensor:
        """Map samples, images in [0, 1], to posterior parameters of shape (B, P)."""
        if noise_BN is not None:
            planes = noise_BN.view(*noise_BN.shape, *[1] * (x_BCHW.ndim - 2))
            planes = planes.expand(-1, -1, *x_BCHW.shape[2:])
            x_BCHW = torch.cat([x_BCHW, planes], 1)
        features: Tensor = self.layers(in_fast_memory(x_BCHW))
        return exact(self.output, features.flatten(1), x_BCHW.dtype)


class Doubling(nn.Module):
    """A transposed convolution to twice the size, cropped to the one wanted.

    It starts as nearest upsampling and a convolution of 3 per side after it, which is a transposed
    convolution whose kernel is that of 3, summed over neighbours. A kernel drawn at random gives
    each pixel of a doubled one weights of its own: a checkerboard, which training leaves in (on
    coloured digits 5 times the images' power at period 2; Odena et al. 2016).
    """

    def __init__(self, channels: int, out: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.layer = TRANSPOSED[len(size)](channels, out, 4, stride=2, padding=1)
        self.start_as_upsampling()

    @torch.no_grad()
    def start_as_upsampling(self) -> None:
        """Draw the kernel, with the limits that PyTorch gives a convolution of 3 per side."""
        channels, out, *sides = self.layer.weight.shape
        limit = 1 / math.sqrt(channels * 3 ** len(sides))
        kernel = torch.empty(channels, out, *[3 for _ in sides]).uniform_(-limit, limit)
        for dim in range(2, kernel.ndim):
            zero = torch.zeros_like(kernel.narrow(dim, 0, 1))
            kernel = torch.cat([kernel, zero], dim) + torch.cat([zero, kernel], dim)
        self.layer.weight.copy_(kernel)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H / 2, W / 2) to (B, out, H, W)."""
        y_BCHW: Tensor = self.layer(x_BCHW)
        for dim, side in enumerate(self.size, 2):
            y_BCHW = y_BCHW.narrow(dim, 0, side)
        return y_BCHW


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

    doubling = Doubling

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
        *larger, smallest = sizes_of(tuple(size))
        outs = [channels, *widths_of(width, max(1, len(larger)))]
        self.small = (outs[-1], *smallest)
        self.input = nn.Linear(latent_dim, math.prod(self.small))
        blocks = num_blocks(depth, residual)
        self.layers = nn.Sequential(*self._layers(outs, larger, len(size), blocks, residual))
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()
        if len(size) == 2:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def _layers(
        cls, outs: list[int], larger: list[Size], num_sides: int, blocks: int, residual: bool
    ) -> Iterable[nn.Module]:
        for level in reversed(range(len(outs) - 1)):
            yield from (Block(num_sides, outs[level + 1], residual) for _ in range(blocks))
            yield from (norm(outs[level + 1]), nn.SiLU())
            if larger:
                yield cls.doubling(outs[level + 1], outs[level], larger[level])
            else:
                yield convolution(num_sides, outs[level + 1], outs[level])

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes to samples of shape (B, C, H, W), in [0, 1] behind a sigmoid."""
        small = self.input(z_BZ).unflatten(1, self.small)
        logits_BCHW = self.layers(in_fast_memory(small))
        # As in MlpDecoder: a sigmoid in bfloat16 soon has no gradient.
        x_BCHW: Tensor = self.output(logits_BCHW.to(z_BZ.dtype))
        return x_BCHW
