"""Posteriors q(z|x), and a whole autoencoder as its users call it: images in and out.

Shapes: B samples, C H W image, Z latent_dim, P encoder outputs, N noise numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from aae_dist.models import mlp, tables
from aae_dist.utils.tensors import one_hot_classes


class Posterior(Protocol):
    """Turns encoder outputs into codes."""

    encoder_noise_dim: int
    """N if the encoder itself reads the noise, else 0."""

    def num_outputs(self, latent_dim: int) -> int:
        """Return P, the number of encoder outputs."""

    def noise_dim(self, latent_dim: int) -> int:
        """Return N, the number of standard normal numbers per sample; 0 for none."""

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return a code of q(z|x), shape (B, Z), from standard normal noise."""

    def mean(self, outputs_BP: Tensor) -> Tensor:
        """Return the mean of q(z|x), shape (B, Z)."""


class DeterministicPosterior:
    """The encoder's output is the code; all of q(z)'s spread comes from the data."""

    encoder_noise_dim = 0

    def num_outputs(self, latent_dim: int) -> int:
        return latent_dim

    def noise_dim(self, latent_dim: int) -> int:
        return 0

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        return outputs_BP

    def mean(self, outputs_BP: Tensor) -> Tensor:
        return outputs_BP


class UniversalPosterior(DeterministicPosterior):
    """z = f(x, noise): the encoder reads the noise, so q(z|x) may have any shape.

    The universal approximator posterior of the AAE paper, section 2.1. The code of zero
    noise stands in for the mean of q, which is unknown.
    """

    def __init__(self, noise_dim: int) -> None:
        """`noise_dim` is N, the number of standard normal numbers that the encoder reads."""
        self.encoder_noise_dim = noise_dim

    def noise_dim(self, latent_dim: int) -> int:
        return self.encoder_noise_dim


class CategoricalPosterior(DeterministicPosterior):
    """The code is a class: softmax of the outputs, as q(y|x) in the AAE paper (section 4)."""

    def __init__(self, straight_through: bool = False) -> None:
        """With `straight_through`, codes are one-hot, with the gradients of the softmax."""
        self.straight_through = straight_through

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        return self.mean(outputs_BP)

    def mean(self, outputs_BP: Tensor) -> Tensor:
        soft_BZ = outputs_BP.softmax(1)
        if not self.straight_through:
            return soft_BZ
        hard_BZ = nn.functional.one_hot(soft_BZ.argmax(1), soft_BZ.shape[1]).to(soft_BZ)
        return hard_BZ + (soft_BZ - soft_BZ.detach())


class GaussianPosterior:
    """A diagonal Gaussian; the encoder gives its mean and log standard deviation.

    Reparameterised as in Kingma and Welling, arXiv 1312.6114, section 2.4.
    """

    encoder_noise_dim = 0

    def num_outputs(self, latent_dim: int) -> int:
        return 2 * latent_dim

    def noise_dim(self, latent_dim: int) -> int:
        return latent_dim

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        mean_BZ, log_std_BZ = self.parameters(outputs_BP)
        return mean_BZ + log_std_BZ.exp() * noise_BN

    def mean(self, outputs_BP: Tensor) -> Tensor:
        return self.parameters(outputs_BP)[0]

    def parameters(self, outputs_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, each of shape (B, Z)."""
        mean_BZ, log_std_BZ = outputs_BP.chunk(2, dim=1)
        return mean_BZ, log_std_BZ


class ProductPosterior:
    """Independent posteriors of the parts of a code, side by side."""

    def __init__(self, parts: Sequence[tuple[int, Posterior]], given: Sequence[int] = ()) -> None:
        """`parts` are numbers of dimensions and posteriors, in the order of the code.

        Those of the numbers `given`, from 0, hold the label; `with_labels` puts them among the
        outputs.
        """
        self.parts, self.given = tuple(parts), tuple(given)
        self.encoder_noise_dim = max(posterior.encoder_noise_dim for _, posterior in parts)
        self._outputs = [posterior.num_outputs(dims) for dims, posterior in parts]
        # What the encoder itself reads is no noise of a part.
        self._noise = [0 if p.encoder_noise_dim else p.noise_dim(dims) for dims, p in parts]

    def num_outputs(self, latent_dim: int) -> int:
        return sum(self._outputs) - sum(self._outputs[number] for number in self.given)

    def noise_dim(self, latent_dim: int) -> int:
        return self.encoder_noise_dim or sum(self._noise)

    def with_labels(self, outputs_BP: Tensor, labels_B: Tensor) -> Tensor:
        """Return outputs (B, P) with the labels, one-hot, in the place of the given parts.

        Rows without a label, -1, get zeros. Of several given parts the label numbers the
        combinations, as in `ProductPrior`.
        """
        classes = one_hot_classes(labels_B, [self._outputs[number] for number in self.given])
        one_hot = {n: c.to(outputs_BP) for n, c in zip(self.given, classes, strict=True)}
        inferred = [0 if n in one_hot else size for n, size in enumerate(self._outputs)]
        columns = outputs_BP.split(inferred, 1)
        return torch.cat([one_hot.get(n, own) for n, own in enumerate(columns)], 1)

    def parameters(self, outputs_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, each (B, Z); of no spread where it is given."""
        each = []
        split = zip(self.parts, outputs_BP.split(self._outputs, 1), strict=True)
        for (_, posterior), outputs in split:
            if isinstance(posterior, GaussianPosterior):
                each.append(posterior.parameters(outputs))
            else:
                each.append((outputs, torch.zeros_like(outputs)))
        means, log_stds = zip(*each, strict=True)
        return torch.cat(means, 1), torch.cat(log_stds, 1)

    def logits(self, outputs_BP: Tensor) -> Tensor:
        """Return the logits of the first categorical part, shape (B, K)."""
        each = zip(self.parts, outputs_BP.split(self._outputs, 1), strict=True)
        logits_BK: Tensor = next(o for (_, p), o in each if isinstance(p, CategoricalPosterior))
        return logits_BK

    def sample(self, outputs_BP: Tensor, noise_BN: Tensor) -> Tensor:
        used = noise_BN[:, :0] if self.encoder_noise_dim else noise_BN
        noise = used.split(self._noise, 1)
        each = zip(self.parts, outputs_BP.split(self._outputs, 1), noise, strict=True)
        return torch.cat([posterior.sample(own, n) for (_, posterior), own, n in each], 1)

    def mean(self, outputs_BP: Tensor) -> Tensor:
        each = zip(self.parts, outputs_BP.split(self._outputs, 1), strict=True)
        return torch.cat([posterior.mean(own) for (_, posterior), own in each], 1)


def run_encoder(
    encoder: nn.Module,
    posterior: Posterior,
    x_BCHW: Tensor,
    noise_BN: Tensor,
    labels_B: Tensor | None = None,
) -> Tensor:
    """Return the encoder's outputs, shape (B, P); it reads the noise if the posterior needs it.

    Of a code that holds the label, the outputs hold it too.
    """
    inputs = (x_BCHW, noise_BN) if posterior.encoder_noise_dim else (x_BCHW,)
    outputs_BP: Tensor = encoder(*inputs)
    if isinstance(posterior, ProductPosterior) and posterior.given:
        assert labels_B is not None, "the code holds the label"
        return posterior.with_labels(outputs_BP, labels_B.to(outputs_BP.device))
    return outputs_BP


@dataclass(frozen=True)
class Networks:
    """The networks of one run, by name; a run without an adversary has no discriminator."""

    encoder: nn.Module
    decoder: nn.Module
    discriminator: nn.Module | None

    @torch.no_grad()
    def set_scaling(self, mean_CHW: Tensor, std: float, library: float | None = None) -> None:
        """Set mean and standard deviation of the features, in networks that standardize them.

        `library` is the median total of counts, for networks of counts.
        """
        for network in (self.encoder, self.decoder):
            if isinstance(network, tables.Standardized):
                network.mean.copy_(mean_CHW)
                network.std.fill_(std)
            if isinstance(network, tables.CountDecoder | tables.TableDecoder):
                network.set_profile(mean_CHW)
            if library is not None and isinstance(found := getattr(network, "library", 0), Tensor):
                found.fill_(library)

    def named(self) -> dict[str, nn.Module]:
        """Return the networks that exist, by name."""
        all_networks = vars(self).items()
        return {name: network for name, network in all_networks if network is not None}


@dataclass(frozen=True)
class Autoencoder:
    """Encoder, decoder and posterior on one device."""

    networks: Networks
    posterior: Posterior

    @property
    def like(self) -> Tensor:
        """A parameter, of any shape, for the device and dtype of the networks."""
        return next(self.networks.encoder.parameters())

    @torch.no_grad()
    def encode(
        self,
        images_BCHW: Tensor,
        generator: torch.Generator | None = None,
        labels_B: Tensor | None = None,
    ) -> Tensor:
        """Return codes of shape (B, Z).

        Args:
            images_BCHW: uint8 in [0, 255] or floats in [0, 1].
            generator: on the CPU; codes are then drawn from q(z|x), else they are q's means (for
                a universal posterior, the codes of zero noise).
            labels_B: int64, for codes that hold the label.
        """
        x_BCHW, posterior = self.pixels(images_BCHW), self.posterior
        noise_BN = _noise(x_BCHW, posterior.encoder_noise_dim, generator)
        outputs_BP = run_encoder(self.networks.encoder, posterior, x_BCHW, noise_BN, labels_B)
        mean_BZ = posterior.mean(outputs_BP)
        if generator is None:
            return mean_BZ
        if not posterior.encoder_noise_dim:
            noise_BN = _noise(x_BCHW, posterior.noise_dim(mean_BZ.shape[1]), generator)
        return posterior.sample(outputs_BP, noise_BN)

    @torch.no_grad()
    def decode(self, codes_BZ: Tensor, images_BCHW: Tensor | None = None) -> Tensor:
        """Return images of shape (B, C, H, W), floats in [0, 1] behind a sigmoid output.

        Of counts these are expected ones, with the totals of `images_BCHW` if given.
        """
        decoder = self.networks.decoder
        x_hat_BCHW: Tensor = decoder(codes_BZ.to(self.like))
        if isinstance(decoder, tables.CountDecoder):
            return decoder.expected(x_hat_BCHW, images_BCHW)
        return x_hat_BCHW

    @torch.no_grad()
    def represent(self, codes_BZ: Tensor) -> Tensor:
        """Return the map of cluster heads, (B, S); without heads, the codes as they are.

        On the device and of the type of `codes_BZ`.
        """
        heads = mlp.cluster_heads(self.networks.decoder)
        return codes_BZ if heads is None else heads.represent(codes_BZ.to(self.like)).to(codes_BZ)

    @torch.no_grad()
    def discriminate(self, codes_BZ: Tensor, labels_B: Tensor | None = None) -> Tensor | None:
        """Return logits (B, A) that codes are prior samples, by each of A adversaries.

        None without a discriminator. `labels_B` are for one that reads labels.
        """
        if self.networks.discriminator is None:
            return None
        conditions = () if labels_B is None else (labels_B.to(self.like.device),)
        logits: Tensor = self.networks.discriminator(codes_BZ.to(self.like), *conditions)
        return logits.reshape(len(logits), -1)

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Return images, (B, C, H, W), as floats in [0, 1] on the networks' device."""
        x_BCHW = images_BCHW.to(self.like)
        return x_BCHW / 255 if images_BCHW.dtype == torch.uint8 else x_BCHW


class Encoding(nn.Module):
    """The encoder with its posterior's mean: one module from pixels to codes."""

    def __init__(self, encoder: nn.Module, posterior: Posterior) -> None:
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
