import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from aae_dist.distributed.world import World, single
from aae_dist.errors import DataError
from aae_dist.evaluation import Evaluator, evaluate
from aae_dist.priors import Prior


class Normal(Prior):
    def sample(self, num_samples, generator):
        return torch.randn(num_samples, self.latent_dim, generator=generator)


@dataclass(frozen=True)
class Count:
    num_samples: int


class Images:
    """Random 1x4x4 images that remember what was read."""

    def __init__(self, num_samples: int, bad: int | None = None) -> None:
        self.manifest = Count(num_samples)
        generator = torch.Generator().manual_seed(7)
        shape = (num_samples, 1, 4, 4)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.bad, self.largest_read = bad, 0

    def read(self, indices):
        self.largest_read = max(self.largest_read, len(indices))
        if self.bad is not None and self.bad in indices and len(indices) != 32:
            raise DataError("sample 300 is damaged.")
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


def run_rank(rank: int, size: int, num_samples: int, bad: int | None, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, f"store{size}"), size)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store)
    world = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
    try:
        result = Evaluator(Images(num_samples, bad), Normal(2), world, seed=0).evaluate(Networks())
        lines = [f"{name} {value.hex()}" for name, value in sorted(result.metrics.items())]
        assert (result.gallery is not None) == world.is_main
    except DataError as error:
        lines = [str(error)]
    Path(folder, f"size{size}rank{rank}").write_text("\n".join(lines))
    dist.destroy_process_group()


def test_metrics_are_what_they_say():
    dataset, networks = Images(600), Networks()
    result = evaluate(networks, dataset, Normal(2), single(), seed=0)
    codes = result.gallery.codes
    error = (networks.decode(codes) - dataset.images.float() / 255).square()
    assert result.metrics["reconstruction/mse"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert result.metrics["reconstruction/sum_half"] == pytest.approx(
        error.sum().item() / 600 / 2, rel=1e-5
    )
    assert result.metrics["prior_match/num_samples"] == 600
    called_codes = (codes[:, 0] <= 0).float().mean().item()
    assert result.metrics["discriminator/accuracy_codes"] == pytest.approx(called_codes)
    assert 0.45 < result.metrics["discriminator/accuracy_prior"] < 0.55
    assert result.metrics["prior_match/mmd"] > 1.5
    assert dataset.largest_read == 256


def test_gallery_holds_what_the_pictures_show():
    dataset, networks = Images(600), Networks()
    gallery = evaluate(networks, dataset, Normal(2), single(), seed=0).gallery
    assert gallery.labels.tolist() == [i % 10 for i in range(600)]
    assert torch.equal(gallery.originals, dataset.images[np.arange(32) * 600 // 32])
    assert gallery.reconstructions.shape == gallery.decoded_prior.shape == (32, 1, 4, 4)
    assert torch.equal(gallery.decoded_prior, networks.decode(gallery.prior_samples[:32]))


def test_evaluating_again_gives_the_same_numbers_and_touches_no_global_state():
    state = torch.get_rng_state()
    evaluator = Evaluator(Images(64), Normal(2), single(), seed=0)
    first = evaluator.evaluate(Networks()).metrics
    assert evaluator.evaluate(Networks()).metrics == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_large_validation_set_is_thinned_out_evenly():
    evaluator = Evaluator(Images(1000), Normal(2), single(), seed=0, max_samples=100)
    result = evaluator.evaluate(Networks())
    assert result.metrics["prior_match/num_samples"] == 100
    assert result.gallery.labels.tolist() == [0] * 100  # every tenth sample


def test_without_a_discriminator_there_is_no_accuracy_of_one():
    result = evaluate(Networks(with_discriminator=False), Images(64), Normal(2), single(), seed=0)
    assert not any(name.startswith("discriminator/") for name in result.metrics)


def test_float64_networks_are_evaluated_too():
    result = evaluate(Networks(torch.float64), Images(64), Normal(2), single(), seed=0)
    assert math.isfinite(result.metrics["prior_match/c2st"])


def test_a_validation_set_of_a_few_samples_is_refused():
    with pytest.raises(DataError, match="5 validation samples are too few"):
        Evaluator(Images(5), Normal(2), single(), seed=0)


@pytest.mark.distributed
def test_metrics_are_bitwise_the_same_for_any_number_of_ranks(tmp_path):
    for size in (1, 2, 3):
        mp.spawn(run_rank, (size, 700, None, str(tmp_path)), nprocs=size)
    texts = {path.name: path.read_text() for path in tmp_path.glob("size*rank*")}
    assert len(texts) == 6
    assert len(set(texts.values())) == 1, texts
    assert "prior_match/mmd" in texts["size1rank0"]


@pytest.mark.distributed
def test_a_sample_that_one_rank_cannot_read_is_an_error_on_all_ranks(tmp_path):
    mp.spawn(run_rank, (2, 700, 300, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert tmp_path.joinpath(f"size2rank{rank}").read_text() == "sample 300 is damaged."
