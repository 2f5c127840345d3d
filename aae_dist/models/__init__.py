"""Networks and posteriors: plain modules with plain arguments, and those of a configuration.

Only this file of the package reads the configuration.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from aae_dist.config import RunConfig
from aae_dist.config.sections import model as sections
from aae_dist.errors import ConfigError
from aae_dist.models.autoencoder import (
    Autoencoder,
    CategoricalPosterior,
    DeterministicPosterior,
    Encoding,
    GaussianPosterior,
    Networks,
    Posterior,
    StandardizedDecoder,
    StandardizedEncoder,
    UniversalPosterior,
    run_encoder,
)
from aae_dist.models.conv import ConvDecoder, ConvEncoder
from aae_dist.models.mlp import MlpDecoder, MlpDiscriminator, MlpEncoder, SampleShape
from aae_dist.models.own import check_network, check_unit_range, import_network
from aae_dist.utils.tensors import derived_seed

__all__ = [
    "Autoencoder",
    "CategoricalPosterior",
    "ConvDecoder",
    "ConvEncoder",
    "DeterministicPosterior",
    "Encoding",
    "GaussianPosterior",
    "MlpDecoder",
    "MlpDiscriminator",
    "MlpEncoder",
    "Networks",
    "Posterior",
    "SampleShape",
    "UniversalPosterior",
    "build_networks",
    "build_posterior",
    "run_encoder",
]

DTYPES = dict.fromkeys(("fp32", "tf32", "bf16"), torch.float32) | {"fp64": torch.float64}
"""dtype of weights, codes and losses, by `train.precision`."""

STANDARDIZED = {"encoder": StandardizedEncoder, "decoder": StandardizedDecoder}
SAMPLES = 4
"""Rows that a user's network is tried on."""


def build_posterior(config: sections.Posterior) -> Posterior:
    """Return the posterior of the configuration."""
    match config:
        case sections.DeterministicPosterior():
            return DeterministicPosterior()
        case sections.GaussianPosterior():
            return GaussianPosterior()
        case sections.UniversalPosterior():
            return UniversalPosterior(config.noise_dim)
        case sections.CategoricalPosterior():
            return CategoricalPosterior(config.straight_through)


def build_networks(
    config: RunConfig, shape: SampleShape, device: torch.device, trains: bool = True
) -> Networks:
    """Return networks with weights that depend on `run.seed` and each network's name alone.

    Weights are drawn on the CPU, the same for every device. `trains` is False for networks that are
    only used, such as those of a finished run.

    Raises:
        ConfigError: the kind of network does not fit the samples, or a user's does not work.
    """
    # What each role's network is called with.
    model, posterior = config.model, build_posterior(config.posterior)
    num_outputs = posterior.outputs_per_dim * model.latent_dim
    noise = {"noise_dim": posterior.encoder_noise_dim} if posterior.encoder_noise_dim else {}
    roles: dict[str, dict[str, Any]] = {
        "encoder": {"sample_shape": shape, "num_outputs": num_outputs, **noise},
        "decoder": {"latent_dim": model.latent_dim, "sample_shape": shape},
        "discriminator": {"latent_dim": model.latent_dim},
    }
    if config.method.kind != "adversarial":
        del roles["discriminator"]
    built = _built_in(model)

    # Draw weights from a generator of the network's own, without moving torch's global one.
    def make(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.run.seed, f"weights of {name}"))
            own: sections.OwnNetwork | None = getattr(model, name)
            if own is None:
                network = built[name](**roles[name])
                if config.data.standardize and name in STANDARDIZED:
                    network = STANDARDIZED[name](network, shape)
            else:
                network = import_network(name, own, roles[name])
                _check(name, network, roles[name], trains)
                if name == "decoder" and config.method.reconstruction_loss == "bce":
                    check_unit_range(name, network, torch.randn(SAMPLES, model.latent_dim))
            return network.to(device=device, dtype=DTYPES[config.train.precision])

    is_image = len(shape) == 3 and min(shape[1:]) > 1
    if model.kind != "mlp" and not is_image and not (model.encoder and model.decoder):
        raise ConfigError(
            f"model.kind={model.kind} needs images; these samples have shape {shape}; "
            "use model.kind=mlp"
        )
    made = {name: make(name) for name in roles}
    return Networks(made["encoder"], made["decoder"], made.get("discriminator"))


def _built_in(model: sections.Model) -> Mapping[str, Callable[..., nn.Module]]:
    """Return a function per network name that builds it from its role's arguments."""
    sigmoid, residual = model.decoder_output == "sigmoid", model.kind == "resnet"
    widths, spectral = model.discriminator_widths, model.discriminator_spectral_norm

    def discriminator(latent_dim: int) -> nn.Module:
        return MlpDiscriminator(latent_dim, widths, spectral)

    def encoder(**role: Any) -> nn.Module:
        if isinstance(model, sections.MlpModel):
            return MlpEncoder(widths=model.encoder_widths, **role)
        width, depth = model.encoder_width, model.encoder_depth
        return ConvEncoder(width=width, depth=depth, residual=residual, **role)

    def decoder(**role: Any) -> nn.Module:
        if isinstance(model, sections.MlpModel):
            return MlpDecoder(widths=model.decoder_widths, sigmoid=sigmoid, **role)
        width, depth = model.decoder_width, model.decoder_depth
        return ConvDecoder(width=width, depth=depth, residual=residual, sigmoid=sigmoid, **role)

    return {"encoder": encoder, "decoder": decoder, "discriminator": discriminator}


def _check(name: str, network: nn.Module, role: Mapping[str, Any], trains: bool) -> None:
    """Try a user's network on a few random samples, the same on every rank."""
    inputs: tuple[tuple[int, ...], ...]
    if name == "encoder":
        inputs = (role["sample_shape"],)
        inputs += ((role["noise_dim"],),) if "noise_dim" in role else ()
        output: tuple[int, ...] = (role["num_outputs"],)
    else:
        inputs = ((role["latent_dim"],),)
        output = role.get("sample_shape", ())
    draw = torch.Generator().manual_seed(0)
    samples = tuple(torch.rand(SAMPLES, *shape, generator=draw) for shape in inputs)
    check_network(name, network, samples, (SAMPLES, *output), trains)
