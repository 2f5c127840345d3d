"""From the configuration's `prior` section to a prior."""

import importlib

import torch

from aae_dist.config import parts
from aae_dist.errors import ConfigError
from aae_dist.priors.gaussian import GaussianPrior
from aae_dist.priors.mixture import MixturePrior
from aae_dist.priors.prior import Prior
from aae_dist.priors.swiss_roll import SwissRollPrior


def build_prior(config: parts.Prior, latent_dim: int) -> Prior:
    """Return the prior that `config` describes; ConfigError if a custom one cannot be used."""
    arguments = config.model_dump(exclude={"kind"})
    match config:
        case parts.GaussianPrior():
            return GaussianPrior(latent_dim, **arguments)
        case parts.MixturePrior():
            return MixturePrior(latent_dim, **arguments)
        case parts.SwissRollPrior():
            return SwissRollPrior(latent_dim, **arguments)
        case parts.CustomPrior():
            return _import_prior(config, latent_dim)


def _import_prior(config: parts.CustomPrior, latent_dim: int) -> Prior:
    module, name = config.path.split(":")
    try:
        prior = getattr(importlib.import_module(module), name)(latent_dim, **config.arguments)
        sample = prior.sample(3, torch.Generator().manual_seed(0))
    except Exception as error:  # whatever a user's own code raises is the user's to mend
        raise ConfigError(
            f"prior.path: {config.path} failed with {type(error).__name__}: {error}; it must be a "
            "class that takes latent_dim and prior.arguments and has sample(num_samples, generator)"
        ) from error
    if tuple(sample.shape) != (3, latent_dim) or sample.dtype != torch.float32:
        raise ConfigError(
            f"prior.path: {config.path}.sample(3, generator) must be float32 of shape "
            f"(3, {latent_dim}); got {sample.dtype} of shape {tuple(sample.shape)}"
        )
    if not isinstance(prior, Prior):
        raise ConfigError(f"prior.path: {config.path} must derive from aae_dist.priors.Prior")
    return prior
