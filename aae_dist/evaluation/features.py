"""Features of images, by which sets of samples are compared: wavelets, or a network of the user.

Shapes: B images, C H W image, F features.
"""

import hashlib
import importlib
import inspect
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aae_dist.config.sections.model import OwnNetwork
from aae_dist.errors import ConfigError
from aae_dist.models import SampleShape, check_network, import_network
from aae_dist.storage import open_storage

GRID = 4
"""Cells per side in which the coefficients of a band are averaged."""
PACKET_LEVELS = 2
LARGEST_PACKED = 64
"""Shorter side, in pixels, from which an image is halved before it is split into packets."""
MAX_FEATURES = 2048
"""Most features: with more the Fréchet distance of 10,000 samples takes minutes."""
SMALLEST_SIDE = 4
TRIED = 4
"""Images that a network is tried on."""


@dataclass(frozen=True)
class Features:
    """A function from images to features, and what identifies it."""

    of: Callable[[Tensor], Tensor]
    """Floats (B, C, H, W), in [0, 1] for images, to floats (B, F)."""
    hash: str
    """SHA-256 (hex) of what decides the features: the kind, and a network's weights or program."""

    @property
    def number(self) -> float:
        """The first 48 bits of the hash: a number that metrics can hold exactly."""
        return float(int(self.hash[:12], 16))


def wavelet_features(shape: SampleShape) -> Features:
    """Return features that need no weights: mean sizes of Haar wavelet coefficients per region.

    An image whose shorter side is at least 64 is halved, and the details that this removes are
    kept, until it is smaller; the rest is split into 16 packets, as the Fréchet wavelet distance
    does (Veeramacheneni et al., arXiv 2312.15289). Of each band and channel the absolute
    coefficients are averaged in 4 x 4 cells, those of the lowest band with their sign.

    Raises:
        ConfigError: the samples are no images of at least 4 x 4, or would have over 2,048 features.
    """
    if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
        raise ConfigError(
            "evaluation.features=wavelet needs images of at least 4 x 4 pixels (got samples of "
            f"shape {shape}); give features of your own"
        )
    count = wavelets(torch.zeros(1, *shape)).shape[1]
    if count > MAX_FEATURES:
        raise ConfigError(
            f"evaluation.features=wavelet would give {count:,} features for samples of shape "
            f"{shape}, more than {MAX_FEATURES:,}; give features of your own"
        )
    about = f"haar/1 {GRID} {PACKET_LEVELS} {LARGEST_PACKED} {shape}"
    return Features(wavelets, hashlib.sha256(about.encode()).hexdigest())


def wavelets(x_BCHW: Tensor) -> Tensor:
    """Return the features of `wavelet_features`, (B, F)."""
    low, bands = x_BCHW, []
    while min(low.shape[2:]) >= LARGEST_PACKED:
        low, *details = haar(low).unbind(2)
        bands += [detail.abs() for detail in details]
    packets = low[:, :, None]
    for _ in range(PACKET_LEVELS):
        parts = haar(packets.flatten(1, 2))
        packets = parts.unflatten(1, packets.shape[1:3]).flatten(2, 3)
    bands += [packets[:, :, 0], *packets[:, :, 1:].abs().unbind(2)]
    cells = [(min(GRID, band.shape[2]), min(GRID, band.shape[3])) for band in bands]
    pooled = map(nn.functional.adaptive_avg_pool2d, bands, cells)
    return torch.cat([each.flatten(1) for each in pooled], 1)


def haar(x_BCHW: Tensor) -> Tensor:
    """Return the four orthonormal Haar bands (B, C, 4, H / 2, W / 2), the lowest first.

    Odd sides are continued by their last row or column.
    """
    height, width = x_BCHW.shape[2:]
    x_BCHW = nn.functional.pad(x_BCHW, (0, width % 2, 0, height % 2), mode="replicate")
    even, odd = x_BCHW[:, :, ::2], x_BCHW[:, :, 1::2]
    bands = []
    for rows in (even + odd, even - odd):
        left, right = rows[..., ::2], rows[..., 1::2]
        bands += [(left + right) / 2, (left - right) / 2]
    return torch.stack(bands, 2)


def network_features(
    path: str, shape: SampleShape, device: torch.device, **arguments: object
) -> Features:
    """Return the features of a torch module by import path, `package.module:Class`.

    Raises:
        ConfigError: it cannot be built, or fails what is asked of own networks.
    """
    where, own = "evaluation.features", OwnNetwork(path=path, arguments=arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = import_network(where, own, {"sample_shape": shape})
    network = network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256(f"path {path} {arguments}".encode())
    module, name = path.split(":")
    with suppress(OSError, TypeError):  # a class made while the program runs has no source
        digest.update(inspect.getsource(getattr(importlib.import_module(module), name)).encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return Features(_checked(where, network, shape, device), digest.hexdigest())


def exported_features(uri: str, shape: SampleShape, device: torch.device) -> Features:
    """Return the features of a program that torch.export has saved, from any storage.

    Such a file is a program: load only those whose origin you trust.

    Raises:
        ConfigError: it cannot be loaded, or does not map images to features.
    """
    folder, _, name = uri.rpartition("/")
    try:
        content = open_storage(folder).read(name)
    except FileNotFoundError:
        raise ConfigError(f"evaluation.features.export: there is no {uri}") from None
    try:
        program = torch.export.load(io.BytesIO(content)).module().to(device)
    except Exception as error:  # whatever the file holds
        raise ConfigError(
            f"evaluation.features.export: {uri} is no program of torch.export ({error})"
        ) from error
    digest = hashlib.sha256(b"export" + content).hexdigest()
    return Features(_checked("evaluation.features.export", program, shape, device), digest)


def _checked(
    where: str, network: nn.Module, shape: SampleShape, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Try a network; ConfigError unless it maps every image to a row of features."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(TRIED, *shape, generator=draw).to(device)
    try:
        with torch.no_grad():
            found = network(images)
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(f"{where}: failed with {type(error).__name__}: {error}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != TRIED:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"{where}: must map a batch of shape {tuple(images.shape)} to rows of features "
            f"({TRIED}, F); got {got}"
        )
    check_network(where, network, (images,), tuple(found.shape), trains=False)
    return network
