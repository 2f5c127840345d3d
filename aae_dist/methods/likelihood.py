"""Methods without a regularizer on batches: the plain and the variational autoencoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aae_dist.distributed.optimizer import SynchronizedOptimizer
from aae_dist.errors import ConfigError
from aae_dist.losses import gaussian_kl, gaussian_log_density
from aae_dist.methods.inputs import MicroBatch
from aae_dist.methods.method import Losses, Method, Modules
from aae_dist.models import GaussianPosterior
from aae_dist.priors import GaussianPrior


class VariationalMethod(Method):
    """Minimises reconstruction error + beta * KL(q(z|x) || p(z)), in one phase.

    Kingma and Welling, arXiv 1312.6114, with any prior that has a density.
    """

    phases = {"reconstruction": ("encoder", "decoder")}

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, SynchronizedOptimizer],
        beta: float = 1.0,
    ) -> None:
        """Check that the prior has a density; `beta` is the weight of the KL term."""
        super().__init__(modules, optimizers)
        if modules.prior.log_prob(torch.zeros(1, modules.prior.latent_dim)) is None:
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
        outputs_BP = self.modules.encoder(part.x_BCHW)
        z_BZ = self.modules.posterior.sample(outputs_BP, part.noise_reconstruction_BN)
        kl = part.weights_B @ self.kl(outputs_BP, z_BZ)
        error = self.reconstruction_error(part, z_BZ)
        terms = {"loss/reconstruction": error.detach(), "loss/kl": kl.detach()}
        return error + self.beta * kl, terms

    def kl(self, outputs_BP: Tensor, z_BZ: Tensor) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, shape (B): exact for Gaussians, else from `z`."""
        assert isinstance(self.modules.posterior, GaussianPosterior)
        mean_BZ, log_std_BZ = self.modules.posterior.parameters(outputs_BP)
        prior = self.modules.prior
        if isinstance(prior, GaussianPrior):
            return gaussian_kl(mean_BZ, log_std_BZ, prior.std)
        log_prior_B = prior.log_prob(z_BZ)
        assert log_prior_B is not None
        return gaussian_log_density(z_BZ, mean_BZ, log_std_BZ) - log_prior_B


class AutoencoderMethod(Method):
    """The reconstruction phase alone: nothing shapes the codes."""

    phases = {"reconstruction": ("encoder", "decoder")}

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        loss = self.optimizers["reconstruction"].update(self.reconstruction_loss, parts)
        return {"loss/reconstruction": loss}
