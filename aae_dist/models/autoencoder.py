"""A trained or training autoencoder as its users call it: without gradients, images in and out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aae_dist.models.build import Networks
from aae_dist.models.posterior import Posterior, run_encoder


@dataclass(frozen=True)
class Autoencoder:
    """Encoder, decoder and posterior on one device.

    Shapes: B samples, C H W image, Z latent_dim.
    """

    networks: Networks
    posterior: Posterior

    @property
    def like(self) -> Tensor:
        """Return a parameter, for the device and number type of the networks."""
        return next(self.networks.encoder.parameters())

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return codes of shape (B, Z).

        Args:
            images_BCHW: uint8 in [0, 255] or floats in [0, 1].
            generator: on the CPU; codes are then drawn from q(z|x), else they are q's means (for
                a universal posterior, the codes of zero noise).
        """
        x_BCHW, posterior = self.pixels(images_BCHW), self.posterior
        noise_BN = _noise(x_BCHW, posterior.encoder_noise_dim, generator)
        outputs_BP = run_encoder(self.networks.encoder, posterior, x_BCHW, noise_BN)
        mean_BZ = posterior.mean(outputs_BP)
        if generator is None:
            return mean_BZ
        if not posterior.encoder_noise_dim:
            noise_BN = _noise(x_BCHW, posterior.noise_dim(mean_BZ.shape[1]), generator)
        return posterior.sample(outputs_BP, noise_BN)

    @torch.no_grad()
    def decode(self, codes_BZ: Tensor) -> Tensor:
        """Return images of shape (B, C, H, W), floats in [0, 1] behind a sigmoid output."""
        x_hat_BCHW: Tensor = self.networks.decoder(codes_BZ.to(self.like))
        return x_hat_BCHW

    @torch.no_grad()
    def discriminate(self, codes_BZ: Tensor) -> Tensor | None:
        """Return logits of shape (B) that codes are prior samples; None without a discriminator."""
        if self.networks.discriminator is None:
            return None
        logits_B: Tensor = self.networks.discriminator(codes_BZ.to(self.like))
        return logits_B

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Return images as floats in [0, 1] on the networks' device."""
        x_BCHW = images_BCHW.to(self.like)
        return x_BCHW / 255 if images_BCHW.dtype == torch.uint8 else x_BCHW


class Encoding(nn.Module):
    """The encoder with its posterior's mean: one module from pixels to codes."""

    def __init__(self, encoder: nn.Module, posterior: Posterior) -> None:
        """Take the encoder and what makes codes of its outputs."""
        super().__init__()
        self.encoder, self._posterior = encoder, posterior

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return codes of shape (B, Z) of floats in [0, 1]; a universal posterior's at no noise."""
        noise_BN = _noise(x_BCHW, self._posterior.encoder_noise_dim, None)
        return self._posterior.mean(run_encoder(self.encoder, self._posterior, x_BCHW, noise_BN))


def _noise(x_BCHW: Tensor, noise_dim: int, generator: torch.Generator | None) -> Tensor:
    """Return noise of shape (B, N), drawn on the CPU; zeros without a generator."""
    if generator is None:
        # Not len(x): torch.export would take its value for a constant.
        return x_BCHW.new_zeros(x_BCHW.shape[0], noise_dim)
    return torch.randn(len(x_BCHW), noise_dim, generator=generator).to(x_BCHW)
