"""Methods without a discriminator: plain, variational, and distances of codes to the prior.

Shapes: G rows of the global batch, B of this part, Z latent_dim.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aae_dist import losses
from aae_dist.distributed.optimizer import SynchronizedOptimizer
from aae_dist.errors import ConfigError
from aae_dist.methods import distances
from aae_dist.methods.distances import PartwiseDistance, total, weights_of_labels
from aae_dist.methods.method import Draws, Losses, Method, MicroBatch, Modules
from aae_dist.models import GaussianPosterior, ProductPosterior, run_encoder
from aae_dist.priors import GaussianPrior, Prior


class VariationalMethod(Method):
    """Minimises reconstruction error + beta * KL(q(z|x) || p(z)), in one phase.

    Kingma and Welling, arXiv 1312.6114, with any prior that has a density.
    """

    phases = {"reconstruction": ("encoder", "decoder")}

    def __init__(
        self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer], beta: float = 1.0
    ) -> None:
        super().__init__(modules, optimizers)
        each = [part.prior for part in modules.prior.parts]
        if any(prior.log_prob(torch.zeros(1, prior.latent_dim)) is None for prior in each):
            raise ConfigError(
                f"method.kind=variational needs a prior with a density (got "
                f"{type(modules.prior).__name__} without log_prob); use method.kind=adversarial"
            )
        self.beta = beta

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Maximise the evidence lower bound (equation 10, one draw of z per sample)."""
        return self.optimizers["reconstruction"].update_terms(self.negative_elbo, parts)

    def negative_elbo(self, part: MicroBatch) -> tuple[Tensor, Losses]:
        """Return the weighted reconstruction error + beta * KL, a scalar, and its two terms."""
        outputs_BP = run_encoder(
            self.modules.encoder,
            self.modules.posterior,
            part.x_BCHW,
            part.noise_reconstruction_BN,
            part.labels_B,
        )
        z_BZ = self.modules.posterior.sample(outputs_BP, part.noise_reconstruction_BN)
        self.observed(part, z_BZ)
        kl = part.weights_B @ self.kl(outputs_BP, z_BZ)
        error = self.reconstruction_error(part, z_BZ)
        terms = {"loss/reconstruction": error.detach(), "loss/kl": kl.detach()}
        return error + self.beta * kl, terms

    def kl(self, outputs_BP: Tensor, z_BZ: Tensor) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, shape (B): exact for Gaussians, else from `z`.

        Of a code that holds the label, that of its other parts.
        """
        posterior, prior = self.modules.posterior, self.modules.prior
        assert isinstance(posterior, GaussianPosterior | ProductPosterior)
        mean_BZ, log_std_BZ = posterior.parameters(outputs_BP)
        if not prior.given:
            return _gaussian_kl(mean_BZ, log_std_BZ, z_BZ, prior)
        columns = [(part.columns, part.prior) for part in prior.parts]
        each = [_gaussian_kl(mean_BZ[:, c], log_std_BZ[:, c], z_BZ[:, c], p) for c, p in columns]
        return torch.stack(each).sum(0)


def _gaussian_kl(mean_BZ: Tensor, log_std_BZ: Tensor, z_BZ: Tensor, prior: Prior) -> Tensor:
    if isinstance(prior, GaussianPrior):
        return losses.gaussian_kl(mean_BZ, log_std_BZ, prior.std)
    log_prior_B = prior.log_prob(z_BZ)
    assert log_prior_B is not None
    return losses.gaussian_log_density(z_BZ, mean_BZ, log_std_BZ) - log_prior_B


class AutoencoderMethod(Method):
    """The reconstruction phase alone: nothing shapes the codes."""

    phases = {"reconstruction": ("encoder", "decoder")}

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        return self.reconstruct(parts)


class MatchingMethod(Method):
    """Minimises reconstruction error + weight * distance(codes, prior samples), in one phase."""

    phases = {"reconstruction": ("encoder", "decoder")}

    def __init__(
        self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer], weight: float
    ) -> None:
        super().__init__(modules, optimizers)
        self.weight = weight

    @abstractmethod
    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        """Return the distance of codes and as many prior samples, a scalar with gradient.

        `weights_G` are 1 / unmasked rows, 0 for masked ones; `draws` are the same on every rank.
        """

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Encode; compute the distance over the global batch; reconstruct and pull codes closer."""
        return self.reconstruct_and_match(parts, self.distance, self.weight)


class MmdMethod(MatchingMethod):
    """WAE-MMD for any prior: Tolstikhin et al., arXiv 1711.01558, algorithm 2.

    Kernels are as wide as the prior; of a code in parts, a sum over them. Where the code holds the
    label, a mean over labels.
    """

    def __init__(
        self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer], weight: float
    ) -> None:
        super().__init__(modules, optimizers, weight)
        self.prior, parts = modules.prior, modules.prior.parts
        self.widths = [(part.columns, 2 * distances.total_variance(part.prior)) for part in parts]
        if not all(mean_square_distance for _, mean_square_distance in self.widths):
            raise ConfigError(
                "method.kind=mmd takes the width of its kernels from the prior's spread, and all "
                "samples of this prior are equal; use another prior or "
                "method.kind=sliced_wasserstein"
            )

    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        weights, shares_M = weights_of_labels(self.prior, prior_GZ, weights_G)
        discrepancies = [
            losses.maximum_mean_discrepancy(z_GZ[:, own], prior_GZ[:, own], weights, width)
            for own, width in self.widths
        ]
        return total(discrepancies, shares_M)


class SlicedWassersteinMethod(MatchingMethod):
    """Codes and prior samples are compared along random directions, new ones each step.

    The sliced Wasserstein autoencoder of Kolouri et al., arXiv 1804.01947. Where the code holds the
    label, the distance is the sliced energy distance of each label (`PartwiseDistance`).
    """

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, SynchronizedOptimizer],
        weight: float,
        num_projections: int,
    ) -> None:
        super().__init__(modules, optimizers, weight)
        self.to_prior = PartwiseDistance(modules.prior, num_projections)

    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        return self.to_prior(z_GZ, prior_GZ, weights_G, draws)


class CharacteristicMethod(MatchingMethod):
    """Characteristic functions of codes and prior are compared along random directions.

    For a Gaussian prior that is SIGReg (LeJEPA, arXiv 2511.08544) in unbiased form. Of a code in
    parts it is the sum over parts, each in the scale of its own prior; where the code holds the
    label, a mean over labels.
    """

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, SynchronizedOptimizer],
        weight: float,
        num_projections: int,
    ) -> None:
        super().__init__(modules, optimizers, weight)
        self.num_projections, self.prior = num_projections, modules.prior
        self.parts = [(part, _std_of(part.prior)) for part in modules.prior.parts]
        if not all(std for _, std in self.parts):
            raise ConfigError(
                "method.kind=characteristic takes its scale from the prior's spread, and all "
                "samples of this prior are equal; use another prior or "
                "method.kind=sliced_wasserstein"
            )

    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        generator, measured = draws.generator("directions"), []
        weights, shares_M = weights_of_labels(self.prior, prior_GZ, weights_G)
        for part, std in self.parts:
            directions = distances.random_directions(
                part.dims, self.num_projections, generator, z_GZ
            )
            codes, samples = z_GZ[:, part.columns], prior_GZ[:, part.columns]
            is_gaussian = isinstance(part.prior, GaussianPrior)
            measured.append(
                losses.characteristic_distance(
                    codes, samples, weights, directions, std, is_gaussian
                )
            )
        return total(measured, shares_M)


def _std_of(prior: Prior) -> float:
    """Return the standard deviation per dimension."""
    if isinstance(prior, GaussianPrior):
        return prior.std
    return math.sqrt(distances.total_variance(prior) / prior.latent_dim)
