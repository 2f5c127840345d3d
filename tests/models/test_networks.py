"""Networks: shapes of every kind and size, independence of the batch, spectral normalisation."""

from typing import Any

import pytest
import torch
from helpers.steps import tiny_config
from torch import nn

from aae_dist.errors import ConfigError
from aae_dist.models import build_networks
from aae_dist.models.conv import Doubling, sizes_of
from aae_dist.models.mlp import SpectralLinear, largest_singular_value

CPU = torch.device("cpu")
CONV = {"kind": "conv", "latent_dim": 3, "encoder_width": 8, "decoder_width": 8}
RESNET = {**CONV, "kind": "resnet"}
DEEP = {**CONV, "encoder_depth": 2, "decoder_depth": 3}


def networks_of(model: dict[str, Any], shape: tuple[int, ...], **sections: Any) -> Any:
    wide = {"discriminator_widths": (8,)}
    return build_networks(tiny_config(model={**model, **wide}, **sections), shape, CPU)


@pytest.mark.parametrize("model", [CONV, RESNET, DEEP], ids=["conv", "resnet", "deep"])
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 28, 28), (3, 32, 48), (4, 37, 29), (2, 3, 3), (1, 6, 6)),
        *((1, 64), (3, 37), (2, 4), (1, 8, 8, 8), (2, 5, 9, 7)),
    ],
)
def test_decoders_return_the_shape_that_encoders_read(
    model: dict[str, Any], shape: tuple[int, ...]
) -> None:
    networks = networks_of(model, shape, posterior={"kind": "gaussian"})
    x = torch.rand(5, *shape, dtype=torch.float64)
    assert networks.encoder(x).shape == (5, 6)
    x_hat = networks.decoder(torch.randn(5, 3, dtype=torch.float64)).detach()
    assert x_hat.shape == x.shape
    assert 0 < float(x_hat.min()) < float(x_hat.max()) < 1
    assert networks.discriminator(torch.randn(5, 3, dtype=torch.float64)).shape == (5,)


@pytest.mark.parametrize("shape", [(1, 16), (3, 16, 18), (2, 6, 8, 10)])
def test_decoders_start_without_a_checkerboard(shape: tuple[int, ...]) -> None:
    channels, *size = shape
    layer = Doubling(channels, 4, tuple(2 * side for side in size)).double()
    # Constant inputs give constant outputs but at the border: no checkerboard.
    inner = layer(torch.ones(1, *shape, dtype=torch.float64))
    for dim, side in enumerate(size, 2):
        inner = inner.narrow(dim, 1, 2 * side - 2)
    assert inner.flatten(2).std(2).max() < 1e-7


@pytest.mark.parametrize("model", [CONV, RESNET], ids=["conv", "resnet"])
@pytest.mark.parametrize("side", [64, 128, 256])
def test_large_images_shrink_to_four_pixels(model: dict[str, Any], side: int) -> None:
    networks = networks_of({**model, "encoder_width": 2, "decoder_width": 2}, (3, side, side))
    x = torch.rand(1, 3, side, side, dtype=torch.float64)
    assert networks.decoder(networks.encoder(x)).shape == x.shape
    assert sizes_of((side, side))[-1] == (4, 4)


def test_width_and_depth_size_encoder_and_decoder_separately() -> None:
    def sizes(**changes: int) -> tuple[int, int]:
        networks = networks_of({**RESNET, **changes}, (1, 16, 16))
        encoder, decoder = networks.encoder, networks.decoder
        return tuple(sum(p.numel() for p in n.parameters()) for n in (encoder, decoder))  # type: ignore[return-value]

    encoder, decoder = sizes()
    wide, same_decoder = sizes(encoder_width=16)
    same_encoder, deep = sizes(decoder_depth=2)
    assert wide > 3 * encoder
    assert deep > 1.5 * decoder
    assert (same_decoder, same_encoder) == (decoder, encoder)


@pytest.mark.parametrize("model", [CONV, RESNET], ids=["conv", "resnet"])
def test_a_sample_does_not_depend_on_its_batch_and_there_are_no_buffers(
    model: dict[str, Any],
) -> None:
    networks = networks_of(model, (1, 12, 12))
    x = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    together = networks.encoder(x)
    alone = torch.cat([networks.encoder(row[None]) for row in x])
    assert torch.allclose(together, alone, atol=1e-12)
    assert not [*networks.encoder.buffers(), *networks.decoder.buffers()]


@pytest.mark.parametrize("model", [CONV, RESNET], ids=["conv", "resnet"])
def test_gradients_reach_every_weight(model: dict[str, Any]) -> None:
    networks = networks_of(model, (1, 12, 12))
    x = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    networks.decoder(networks.encoder(x)).square().sum().backward()
    for network in (networks.encoder, networks.decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_convolutions_refuse_vectors() -> None:
    with pytest.raises(ConfigError, match=r"needs signals, images or volumes.*data.layout=NL"):
        networks_of(CONV, (1, 1, 12))


def test_mlps_take_vectors() -> None:
    networks = networks_of({"kind": "mlp", "latent_dim": 3, "decoder_output": "linear"}, (12,))
    x = torch.randn(5, 12, dtype=torch.float64)
    assert networks.decoder(networks.encoder(x)).shape == (5, 12)


@pytest.mark.parametrize("model", [{"kind": "mlp", "latent_dim": 3}, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 9), (1, 5, 4, 6)])
def test_a_universal_posterior_reads_noise(model: dict[str, Any], shape: tuple[int, ...]) -> None:
    networks = networks_of(model, shape, posterior={"kind": "universal", "noise_dim": 5})
    x = torch.rand(2, *shape, dtype=torch.float64)
    noise = torch.randn(2, 5, dtype=torch.float64)
    first, second = (networks.encoder(x, n).detach() for n in (noise, -noise))
    assert first.shape == (2, 3)
    assert float((first - second).abs().min()) > 1e-6
    # Not a shift: the same noise moves another image elsewhere.
    other = networks.encoder(1 - x, noise) - networks.encoder(1 - x, -noise)
    assert not torch.allclose(first - second, other, atol=1e-4)


def test_spectral_norm_is_close_to_the_largest_singular_value_for_a_fresh_layer() -> None:
    torch.manual_seed(0)
    for size in ((1000, 1000), (1000, 8), (1, 1000)):
        weight = nn.Linear(size[1], size[0]).weight.detach()
        share = largest_singular_value(weight) / torch.linalg.matrix_norm(weight, 2)
        assert 0.93 <= float(share) <= 1 + 1e-5, size


def test_spectral_norm_follows_scale_and_holds_no_state() -> None:
    torch.manual_seed(0)
    layer = SpectralLinear(20, 30).double()
    x = torch.randn(4, 20, dtype=torch.float64)
    first = layer(x)
    assert torch.equal(first, layer(x))
    assert not list(layer.buffers())
    with torch.no_grad():
        layer.weight *= 7
    assert torch.allclose(layer(x), first)
    layer.zero_grad()
    # Scale invariance: the gradient is orthogonal to the weight, hence sigma has its gradient.
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert abs(float((layer.weight.grad * layer.weight.detach()).sum())) < 1e-8


def test_the_discriminator_option_reaches_every_layer() -> None:
    networks = networks_of({"kind": "mlp", "discriminator_spectral_norm": True}, (4,))
    linear = [m for m in networks.discriminator.modules() if isinstance(m, nn.Linear)]
    assert all(isinstance(m, SpectralLinear) for m in linear)
