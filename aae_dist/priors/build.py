"""Priors from the configuration's `prior` section."""

import importlib

import torch
from torch import Tensor

from aae_dist.config.sections import prior as sections
from aae_dist.errors import ConfigError
from aae_dist.priors.distributions import (
    CategoricalPrior,
    EmpiricalPrior,
    GaussianPrior,
    LaplacePrior,
    MixturePrior,
    Prior,
    SpherePrior,
    StudentTPrior,
    SwissRollPrior,
    UniformPrior,
)

PRIORS: dict[str, type[Prior]] = {
    "categorical": CategoricalPrior,
    "gaussian": GaussianPrior,
    "laplace": LaplacePrior,
    "mixture": MixturePrior,
    "sphere": SpherePrior,
    "student_t": StudentTPrior,
    "swiss_roll": SwissRollPrior,
    "uniform": UniformPrior,
}
"""By `kind`; each class takes latent_dim and the section's other fields."""


def build_prior(config: sections.Prior, latent_dim: int, vectors: Tensor | None = None) -> Prior:
    """Return the prior that `config` describes.

    Args:
        config: the configuration's prior section.
        latent_dim: number of dimensions.
        vectors: float32 (M, latent_dim), what the kinds `data` and `run` draw from.

    Raises:
        ConfigError: a custom prior cannot be used.
    """
    match config:
        case sections.DataPrior() | sections.RunPrior():
            assert vectors is not None, "read by training.prior_vectors"
            return EmpiricalPrior(vectors)
        case sections.CustomPrior():
            return _import_prior(config, latent_dim)
        case _:
            return PRIORS[config.kind](latent_dim, **config.model_dump(exclude={"kind"}))


def _import_prior(config: sections.CustomPrior, latent_dim: int) -> Prior:
    module, name = config.path.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
        # Asked before it is called: a saved configuration must not call whatever it names.
        if not (isinstance(found, type) and issubclass(found, Prior)):
            raise TypeError("it does not derive from aae_dist.priors.Prior")
        prior = found(latent_dim, **config.arguments)
        sample = prior.sample(3, torch.Generator().manual_seed(0)).clone()
        again = prior.sample(3, torch.Generator().manual_seed(0))
    except Exception as error:  # a user's code may raise anything; the user has to fix it
        raise ConfigError(
            f"prior.path: {config.path} failed with {type(error).__name__}: {error}; it must be a "
            "class that takes latent_dim and prior.arguments and has sample(num_samples, generator)"
        ) from error
    if tuple(sample.shape) != (3, latent_dim) or sample.dtype != torch.float32:
        raise ConfigError(
            f"prior.path: {config.path}.sample(3, generator) must be float32 of shape "
            f"(3, {latent_dim}); got {sample.dtype} of shape {tuple(sample.shape)}"
        )
    if not sample.isfinite().all():
        raise ConfigError(f"prior.path: {config.path}.sample gives numbers that are not finite")
    if not torch.equal(sample, again):
        raise ConfigError(
            f"prior.path: {config.path}.sample(3, generator) returns other numbers for an equal "
            "generator, so a resumed run would differ; draw from `generator` alone, as in "
            "torch.randn(num_samples, self.latent_dim, generator=generator)"
        )
    return prior
