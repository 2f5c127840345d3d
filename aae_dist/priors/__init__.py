"""Priors p(z). For your own, derive from `Prior` and name it with `prior.kind=custom`."""

from aae_dist.priors.build import build_prior
from aae_dist.priors.prior import Prior
from aae_dist.priors.with_density import (
    GaussianPrior,
    LaplacePrior,
    MixturePrior,
    StudentTPrior,
    UniformPrior,
)
from aae_dist.priors.without_density import (
    CategoricalPrior,
    EmpiricalPrior,
    SpherePrior,
    SwissRollPrior,
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
