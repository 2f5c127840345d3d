"""Networks and posteriors: plain modules with plain arguments."""

from aae_dist.models.autoencoder import Autoencoder
from aae_dist.models.build import Networks, build_networks, build_posterior
from aae_dist.models.mlp import MlpDecoder, MlpDiscriminator, MlpEncoder
from aae_dist.models.posterior import DeterministicPosterior, GaussianPosterior, Posterior

__all__ = [
    "Autoencoder",
    "DeterministicPosterior",
    "GaussianPosterior",
    "MlpDecoder",
    "MlpDiscriminator",
    "MlpEncoder",
    "Networks",
    "Posterior",
    "build_networks",
    "build_posterior",
]
