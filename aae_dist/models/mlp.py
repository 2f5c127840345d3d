"""Fully connected encoder, decoder and discriminator, for images and vectors.

Shapes: B samples, C H W image (or D vector), N noise numbers, Z latent_dim, P posterior outputs,
K classes, S style.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SampleShape = tuple[int, ...]
"""(C, H, W) of images, (C, L) of signals, (C, D, H, W) of volumes, (1, 1, D) of vectors."""


def fully_connected(sizes: Sequence[int], linear: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU between them; the last layer is linear."""
    layers: list[nn.Module] = []
    for size_in, size_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [linear(size_in, size_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def exact(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return layer(x) in the `dtype` of its weights, also under bfloat16 autocast."""
    # For codes: bfloat16 has 8 bits, so that between 1 and 2 they would come in steps of 1/128.
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(dtype))  # type: ignore[no-any-return]


class MlpEncoder(nn.Module):
    """x -> parameters of q(z|x), or (x, noise) -> z for a universal posterior.

    Args:
        sample_shape: (C, H, W), or (D,) for vectors.
        num_outputs: P.
        widths: units of each hidden layer.
        noise_dim: N, of noise that the encoder reads; 0 for none.
    """

    def __init__(
        self,
        sample_shape: SampleShape,
        num_outputs: int,
        widths: Sequence[int] = (1000, 1000),
        noise_dim: int = 0,
    ) -> None:
        super().__init__()
        num_inputs = math.prod(sample_shape) + noise_dim
        self.layers = fully_connected([num_inputs, *widths, num_outputs])

    def forward(self, x_BCHW: Tensor, noise_BN: Tensor | None = None) -> Tensor:
        """Map samples, images in [0, 1], to posterior parameters of shape (B, P)."""
        flat = x_BCHW.flatten(1)
        inputs = flat if noise_BN is None else torch.cat([flat, noise_BN], 1)
        *hidden, last = self.layers
        for layer in hidden:
            inputs = layer(inputs)
        return exact(last, inputs, x_BCHW.dtype)


class MlpDecoder(nn.Module):
    """z -> x.

    Args:
        latent_dim: Z.
        sample_shape: (C, H, W), or (D,) for vectors.
        widths: units of each hidden layer.
        sigmoid: whether outputs are in [0, 1]; else they are not bounded.
    """

    def __init__(
        self,
        latent_dim: int,
        sample_shape: SampleShape,
        widths: Sequence[int] = (1000, 1000),
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        self.sample_shape = sample_shape
        self.layers = fully_connected([latent_dim, *widths, math.prod(sample_shape)])
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes to samples, images of shape (B, C, H, W), in [0, 1] behind a sigmoid."""
        # From a logit of 6.2 on, bfloat16's sigmoid is 1 and has no gradient.
        logits_BD = self.layers(z_BZ).to(z_BZ.dtype)
        x_BCHW: Tensor = self.output(logits_BD).unflatten(1, self.sample_shape)
        return x_BCHW


class MlpDiscriminator(nn.Module):
    """z -> logit that z is a sample of the prior rather than a code.

    Args:
        latent_dim: Z.
        widths: units of each hidden layer.
        spectral_norm: whether each weight is divided by its largest singular value (Miyato et al.,
            arXiv 1802.05957).
    """

    def __init__(
        self, latent_dim: int, widths: Sequence[int] = (1000, 1000), spectral_norm: bool = False
    ) -> None:
        super().__init__()
        linear = SpectralLinear if spectral_norm else nn.Linear
        self.layers = fully_connected([latent_dim, *widths, 1], linear)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes or prior samples to logits of shape (B)."""
        logits_B1: Tensor = self.layers(z_BZ)
        return logits_B1.squeeze(1)


class PartwiseDiscriminator(nn.Module):
    """Independent discriminators, one per part of the code, as one network.

    The sum of their losses has the gradients of each, so under optimizers that work element by
    element, as Adam does, they train as separate networks. Each also reads the given parts, so
    that it compares the code of every label with the prior.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        columns: Sequence[slice],
        given: Sequence[slice] = (),
    ) -> None:
        """`networks` map (B, dims of the part and of all given ones) to logits (B).

        `columns` are their parts, `given` those that hold the label.
        """
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.columns, self.given = tuple(columns), tuple(given)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes or prior samples to logits of shape (B, A), one per part."""
        labels = [z_BZ[:, columns] for columns in self.given]
        own = (torch.cat([z_BZ[:, columns], *labels], 1) for columns in self.columns)
        # The product lays gradients out as those of a network alone, so that sums round equally.
        logits = [net(part) * 1 for net, part in zip(self.networks, own, strict=True)]
        return torch.stack(logits, 1)


class LabelledDiscriminator(nn.Module):
    """A discriminator that also reads the class of each code, one of K, or that it has none."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        """`network` maps (B, Z + K + 1) to logits (B)."""
        super().__init__()
        self.network, self.num_classes = network, num_classes

    def forward(self, z_BZ: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """Map codes or prior samples, with labels int64 or -1 for none, to logits of shape (B)."""
        if labels_B is None:
            labels_B = torch.full((z_BZ.shape[0],), -1, device=z_BZ.device)
        classes_B = torch.where(labels_B < 0, self.num_classes, labels_B)
        one_hot = F.one_hot(classes_B, self.num_classes + 1).to(z_BZ)
        logits_B: Tensor = self.network(torch.cat([z_BZ, one_hot], 1))
        return logits_B


ROUNDS = 12


def largest_singular_value(weight: Tensor) -> Tensor:
    """Return the largest singular value of a matrix, a scalar with gradient, from below."""
    matrix = weight.detach()
    # Any fixed vector does that no structured matrix is likely to be orthogonal to.
    v = torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=matrix.dtype).cos()
    for _ in range(ROUNDS):
        u = F.normalize(matrix @ v, dim=0)
        v = F.normalize(matrix.t() @ u, dim=0)
    return (u @ weight) @ v


class SpectralLinear(nn.Linear):
    """A linear layer whose weight is divided by its largest singular value."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in) to (B, out)."""
        return F.linear(input, self.weight / largest_singular_value(self.weight), self.bias)


class ClusterHeadDecoder(nn.Module):
    """Decodes W y + s, the head of the class plus the style, so that both share one space.

    Makhzani et al., arXiv 1511.05644, section 7: a vector per class, of few dimensions.
    """

    def __init__(
        self, network: nn.Module, classes: slice, style: slice, distance: float, weight: float
    ) -> None:
        """`network` decodes (B, S); the slices are the columns of y and s in the code.

        Heads start as normal numbers of standard deviation `distance`. Where two are nearer than
        that, `penalty` is `weight` times what is missing.
        """
        super().__init__()
        self.network, self.classes, self.style = network, classes, style
        self.distance, self.weight = distance, weight
        dims = style.stop - style.start
        self.heads = nn.Linear(classes.stop - classes.start, dims, bias=False)
        nn.init.normal_(self.heads.weight, std=distance)

    def represent(self, z_BZ: Tensor) -> Tensor:
        """Return the map of reduced dimension, shape (B, S): the inputs of the network."""
        return exact(self.heads, z_BZ[:, self.classes], z_BZ.dtype) + z_BZ[:, self.style]

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to samples."""
        x_BCHW: Tensor = self.network(self.represent(z_BZ))
        return x_BCHW

    def penalty(self) -> Tensor:
        """Return the weighted sum of the lengths that pairs of heads lack, a scalar."""
        distances = F.pdist(self.heads.weight.t())
        return self.weight * F.relu(self.distance - distances).sum()


def cluster_heads(decoder: nn.Module) -> ClusterHeadDecoder | None:
    """Return the cluster heads inside a decoder, wrapped in any way; None without."""
    found = (module for module in decoder.modules() if isinstance(module, ClusterHeadDecoder))
    return next(found, None)
