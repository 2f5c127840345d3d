"""From the configuration to networks; the only file of this package that sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from aae_dist.config import RunConfig, parts
from aae_dist.distributed.seeds import derived_seed
from aae_dist.models.mlp import ImageShape, MlpDecoder, MlpDiscriminator, MlpEncoder
from aae_dist.models.posterior import DeterministicPosterior, GaussianPosterior, Posterior

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Networks:
    """The networks of one run, by name; a run without an adversary has no discriminator."""

    encoder: nn.Module
    decoder: nn.Module
    discriminator: nn.Module | None

    def named(self) -> dict[str, nn.Module]:
        """Return the networks that exist, by name."""
        all_networks = vars(self).items()
        return {name: network for name, network in all_networks if network is not None}


def build_posterior(config: parts.Posterior) -> Posterior:
    """Return the posterior that `config` names."""
    match config:
        case parts.DeterministicPosterior():
            return DeterministicPosterior()
        case parts.GaussianPosterior():
            return GaussianPosterior()


def build_networks(config: RunConfig, image_shape: ImageShape, device: torch.device) -> Networks:
    """Return networks with weights that depend on `run.seed` and each network's name alone.

    Args:
        config: the run's configuration.
        image_shape: (C, H, W) of the data.
        device: where the networks live; weights are drawn on the CPU, alike for every device.
    """
    model, latent_dim = config.model, config.model.latent_dim
    num_outputs = build_posterior(config.posterior).outputs_per_dim * latent_dim
    sigmoid = model.decoder_output == "sigmoid"

    def make(name: str, network: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.run.seed, f"weights of {name}"))
            return network().to(device=device, dtype=DTYPES[config.train.precision])

    return Networks(
        encoder=make("encoder", lambda: MlpEncoder(image_shape, model.encoder_widths, num_outputs)),
        decoder=make(
            "decoder", lambda: MlpDecoder(latent_dim, model.decoder_widths, image_shape, sigmoid)
        ),
        discriminator=make(
            "discriminator", lambda: MlpDiscriminator(latent_dim, model.discriminator_widths)
        )
        if config.method.kind == "adversarial"
        else None,
    )
