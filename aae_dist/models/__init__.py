"""Networks and posteriors: plain modules with plain arguments."""

from aae_dist.models.autoencoder import (
    Autoencoder,
    CategoricalPosterior,
    DeterministicPosterior,
    Encoding,
    GaussianPosterior,
    Networks,
    Posterior,
    UniversalPosterior,
    run_encoder,
)
from aae_dist.models.build import build_networks, build_posterior
from aae_dist.models.conv import ConvDecoder, ConvEncoder
from aae_dist.models.mlp import MlpDecoder, MlpDiscriminator, MlpEncoder, SampleShape

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
