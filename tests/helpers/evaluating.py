"""Small stand-ins for data, prior and networks, and what a rank does with them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.distributed.world import World
from aae_dist.errors import DataError
from aae_dist.evaluation import Evaluator
from aae_dist.priors import Prior


class Normal(Prior):
    def sample(self, num_samples, generator):
        return torch.randn(num_samples, self.latent_dim, generator=generator)


@dataclass(frozen=True)
class Count:
    num_samples: int


class Images:
    """Random 1x4x4 images; reading the sample `bad` in a chunk fails."""

    def __init__(self, num_samples: int, bad: int | None = None) -> None:
        self.manifest = Count(num_samples)
        generator = torch.Generator().manual_seed(7)
        shape = (num_samples, 1, 4, 4)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.bad, self.largest_read = bad, 0

    def read(self, indices):
        self.largest_read = max(self.largest_read, len(indices))
        if self.bad in indices and len(indices) > 32:
            raise DataError(f"sample {self.bad} is damaged.")
        return self.images[torch.from_numpy(indices)], torch.from_numpy(indices) % 10


class Networks:
    """Linear encoder and decoder with noise in the posterior, in a dtype of choice."""

    def __init__(self, dtype=torch.float32, with_discriminator: bool = True) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(16, 2, generator=generator).to(dtype)
        self.with_discriminator = with_discriminator

    def encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        assert images.dtype == torch.uint8
        assert not torch.is_grad_enabled()
        pixels = images.flatten(1).to(self.weight.dtype) / 255
        noise = torch.randn(len(images), 2, generator=generator).to(self.weight.dtype)
        return pixels @ self.weight * 0.5 + 0.1 * noise

    def decode(self, z: Tensor) -> Tensor:
        return (z.to(self.weight.dtype) @ self.weight.T).sigmoid().unflatten(1, (1, 4, 4))

    def discriminate(self, z: Tensor) -> Tensor | None:
        return z.to(self.weight.dtype)[:, 0] if self.with_discriminator else None


def exact_metrics(world: World, num_samples: int) -> dict[str, str]:
    """Return this rank's metrics to the last bit."""
    result = Evaluator(Images(num_samples), Normal(2), world, seed=0).evaluate(Networks())
    assert (result.gallery is not None) == world.is_main
    return {name: value.hex() for name, value in result.metrics.items()}


def metrics_and_error(world: World, num_samples: int, bad: int) -> tuple[dict[str, str], str]:
    """Return the metrics, and the error of evaluating data of which one rank cannot read a part."""
    metrics = exact_metrics(world, num_samples)
    try:
        Evaluator(Images(num_samples, bad), Normal(2), world, seed=0).evaluate(Networks())
    except DataError as error:
        return metrics, str(error)
    return metrics, ""
