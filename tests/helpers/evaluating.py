"""Small stand-ins for data, prior and networks, and what a rank does with them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aae_dist.data.dataset import Samples
from aae_dist.distributed.world import World
from aae_dist.errors import DataError, SampleError
from aae_dist.evaluation import Evaluator
from aae_dist.evaluation.features import wavelet_features
from aae_dist.priors import Prior


class Normal(Prior):
    def sample(self, num_samples, generator):
        return torch.randn(num_samples, self.latent_dim, generator=generator)


@dataclass(frozen=True)
class Count:
    num_samples: int


class Images:
    """Random 1x4x4 images; those of the samples `bad` cannot be read, of `lost` raise."""

    image_shape = (1, 4, 4)

    def __init__(self, num_samples: int, bad: tuple[int, ...] = (), lost: int = -1) -> None:
        self.manifest = Count(num_samples)
        generator = torch.Generator().manual_seed(7)
        shape = (num_samples, 1, 4, 4)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.bad, self.lost, self.largest_read = bad, lost, 0
        self.workers = None

    def with_label_holes(self, samples: Samples) -> Samples:
        return samples

    def load(self, indices, workers=None):
        self.workers = workers or self.workers
        self.largest_read = max(self.largest_read, len(indices))
        if self.lost in indices:
            raise DataError(f"no room for sample {self.lost}.")
        bad = {
            row: SampleError("damaged", reason="image")
            for row in np.flatnonzero(np.isin(indices, self.bad)).tolist()
        }
        images, labels = self.images[torch.from_numpy(indices)], torch.from_numpy(indices) % 10
        images[list(bad)], labels[list(bad)] = 0, -1
        return Samples(images, labels, bad)


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

    def decode(self, z: Tensor, images: Tensor | None = None) -> Tensor:
        return (z.to(self.weight.dtype) @ self.weight.T).sigmoid().unflatten(1, (1, 4, 4))

    def represent(self, z: Tensor) -> Tensor:
        return z

    def discriminate(self, z: Tensor) -> Tensor | None:
        return z.to(self.weight.dtype)[:, 0] if self.with_discriminator else None


def exact_metrics(world: World, num_samples: int, bad: tuple[int, ...] = ()) -> dict[str, str]:
    """Return this rank's metrics to the last bit, equal in two evaluations."""
    features, images = wavelet_features((1, 4, 4)), Images(num_samples, bad)
    evaluator = Evaluator(images, Normal(2), world, seed=0, features=features)
    results = [evaluator.evaluate(Networks()) for _ in range(2)]
    assert (results[0].images is not None) == world.is_main
    found = [{name: v.hex() for name, v in result.metrics.items()} for result in results]
    assert found[0] == found[1]
    return found[0]


def metrics_and_error(
    world: World, num_samples: int, bad: tuple[int, ...], lost: int
) -> tuple[dict[str, str], str]:
    """Return the metrics, and the error of evaluating data of which one rank cannot have a part."""
    metrics = exact_metrics(world, num_samples, bad)
    data = Images(num_samples, lost=lost)
    try:
        Evaluator(data, Normal(2), world, seed=0).evaluate(Networks())
    except DataError as error:
        return metrics, str(error)
    return metrics, ""
