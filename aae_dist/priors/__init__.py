"""Priors p(z): one a file. Your own: derive from `Prior` and name it by `prior.kind=custom`."""

from aae_dist.priors.build import build_prior
from aae_dist.priors.gaussian import GaussianPrior
from aae_dist.priors.mixture import MixturePrior
from aae_dist.priors.prior import Prior
from aae_dist.priors.swiss_roll import SwissRollPrior

__all__ = ["GaussianPrior", "MixturePrior", "Prior", "SwissRollPrior", "build_prior"]
