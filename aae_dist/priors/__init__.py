"""Priors p(z): one a file. Your own: derive from `Prior` and name it by `prior.kind=custom`."""

from aae_dist.priors.build import build_prior
from aae_dist.priors.categorical import CategoricalPrior
from aae_dist.priors.empirical import EmpiricalPrior
from aae_dist.priors.gaussian import GaussianPrior
from aae_dist.priors.laplace import LaplacePrior
from aae_dist.priors.mixture import MixturePrior
from aae_dist.priors.prior import Prior
from aae_dist.priors.sphere import SpherePrior
from aae_dist.priors.student_t import StudentTPrior
from aae_dist.priors.swiss_roll import SwissRollPrior
from aae_dist.priors.uniform import UniformPrior

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
