"""Priors p(z). For your own, derive from `Prior` and name it with `prior.kind=custom`."""

from aae_dist.priors.build import build_prior
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

__all__ = [
    "CategoricalPrior",
    "EmpiricalPrior",
    "GaussianPrior",
    "LaplacePrior",
    "MixturePrior",
    "Prior",
    "SpherePrior",
    "StudentTPrior",
    "SwissRollPrior",
    "UniformPrior",
    "build_prior",
]
