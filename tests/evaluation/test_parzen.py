"""Parzen likelihoods against the formula written out, for any blocks and ranks."""

import math

import pytest
import torch
from helpers.ranks import run_ranks, single_world
from torch import Tensor

from aae_dist.config.sections.model import GaussianPrior
from aae_dist.distributed.world import World
from aae_dist.evaluation import parzen
from aae_dist.evaluation.parzen import BLOCK, KernelSums, Rows, parzen_metrics
from aae_dist.priors import build_prior
from aae_dist.utils.tensors import keyed_generator

PRIOR = build_prior(GaussianPrior(), 3)


def decode(codes: Tensor) -> Tensor:
    """Sixty values on a curved surface."""
    mixed = torch.randn(3, 60, generator=torch.Generator().manual_seed(1))
    return torch.sigmoid(codes @ mixed).view(-1, 3, 4, 5)


def points(num: int) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    clean = decode(torch.randn(num, 3, generator=draw)).flatten(1)
    return clean + 0.1 * torch.randn(clean.shape, generator=draw)


def all_samples(num: int) -> Tensor:
    size = parzen.BLOCK
    blocks = [
        decode(PRIOR.sample(min(size, num - start), keyed_generator(0, "parzen", start // size)))
        for start in range(0, num, size)
    ]
    return torch.cat(blocks).flatten(1)


def slow(x: Tensor, samples: Tensor, sigmas: list[float]) -> Tensor:
    """Return log p of each point by each bandwidth, all in float64 and at once."""
    squares = torch.cdist(x.double(), samples.double(), compute_mode="donot_use_mm_for_euclid_dist")
    squares = squares.square_()
    columns = []
    for sigma in sigmas:
        logs = torch.logsumexp(-squares / (2 * sigma**2), 1) - math.log(len(samples))
        columns.append(logs - x.shape[1] / 2 * math.log(2 * math.pi * sigma**2))
    return torch.stack(columns, 1)


def slow_choice(x: Tensor, samples: Tensor, sigmas: list[float]) -> Tensor:
    """Return log p of each point, by the best bandwidth of the points of the other parity."""
    scores = slow(x, samples, sigmas)
    of_odd, of_even = scores[1::2].mean(0).argmax(), scores[::2].mean(0).argmax()
    return torch.cat([scores[::2, of_odd], scores[1::2, of_even]])


def grid(middle: float, lowest: int, highest: int) -> list[float]:
    return [middle * 2 ** (step / 8) for step in range(lowest, highest + 1)]


def spread(x: Tensor) -> float:
    return float(x.double().var(0, correction=0).mean().sqrt())


@pytest.mark.parametrize("num_samples", [1, 700, BLOCK + 1])
def test_the_likelihood_is_the_textbook_one_to_a_thousandth_nat(num_samples: int) -> None:
    x = points(41)
    found = parzen_metrics(x, decode, PRIOR, num_samples, 0, single_world())
    exact = slow_choice(x, all_samples(num_samples), grid(spread(x), -20, 8))
    assert found["parzen/log_likelihood"] == pytest.approx(float(exact.mean()), abs=1e-3)
    assert found["parzen/num_samples"] == num_samples
    assert found["parzen/standard_error"] == pytest.approx(
        float(exact.std()) / math.sqrt(41), rel=1e-3
    )


def test_beyond_the_pilot_the_bandwidth_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parzen, "NUM_PILOT", 50)
    monkeypatch.setattr(parzen, "BLOCK", 50)
    x = points(100)
    pilot = parzen_metrics(x, decode, PRIOR, 50, 0, single_world())
    found = parzen_metrics(x, decode, PRIOR, 8000, 0, single_world())
    assert found["parzen/sigma"] < pilot["parzen/sigma"]
    few, sigmas = all_samples(50), grid(spread(x), -20, 8)
    middle = sigmas[int(slow(x, few, sigmas).mean(0).argmax())]
    exact = slow_choice(x, all_samples(8000), grid(middle, -8, 1))
    assert found["parzen/log_likelihood"] == pytest.approx(float(exact.mean()), abs=1e-3)


def test_no_point_is_scored_with_the_bandwidth_it_chose() -> None:
    # The even points lie on samples, so they choose the narrowest kernel, which ruins the odd ones.
    samples = all_samples(100)
    x = torch.empty(80, 60)
    x[::2], x[1::2] = samples[:40], points(40)
    found = parzen_metrics(x, decode, PRIOR, 100, 0, single_world())
    sigmas = [0.01, 0.05, 0.1, 0.2, 0.4]
    best_odd = float(slow(x[1::2], samples, sigmas).mean(0).max())
    odd_alone = parzen_metrics(x[1::2], decode, PRIOR, 100, 0, single_world())
    assert found["parzen/log_likelihood"] < best_odd
    assert found["parzen/log_likelihood"] < odd_alone["parzen/log_likelihood"]


def metrics_of(world: World, num_samples: int) -> dict[str, float]:
    return parzen_metrics(points(50), decode, PRIOR, num_samples, 0, world)


@pytest.mark.distributed
@pytest.mark.parametrize("num_samples", [10, 3 * BLOCK + 5])
def test_ranks_share_the_samples(num_samples: int) -> None:
    expected = metrics_of(single_world(), num_samples)
    for found in run_ranks(metrics_of, 2, num_samples):
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("max_gathered", [0.0, 1.0])
def test_far_samples_are_left_out_and_near_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, max_gathered: float
) -> None:
    monkeypatch.setattr(parzen, "MAX_GATHERED", max_gathered)
    centre, direction = torch.zeros(2), torch.tensor([[1.0], [0.0]])

    def rows(*lengths: float) -> Rows:
        values = torch.tensor([[0.5 * length**0.5, 0.75**0.5 * length**0.5] for length in lengths])
        return Rows.centred(values, centre, direction)

    sums = KernelSums.empty(torch.tensor([0.5], dtype=torch.float64), 1)
    sums.add(slice(None), rows(0.0), rows(4.0, 4.5, 90.0), reach=10.0)
    sums.add(slice(None), rows(0.0), rows(3.0, 80.0), reach=10.0)
    expected = 1 + math.exp(-1 / 0.5) + math.exp(-1.5 / 0.5)
    assert float(sums.sums) == pytest.approx(expected, rel=1e-5)
    assert float(sums.nearest) == pytest.approx(3.0)


@pytest.mark.parametrize(("num_points", "num_samples"), [(1, 10), (10, 0)])
def test_too_few_are_refused(num_points: int, num_samples: int) -> None:
    with pytest.raises(ValueError, match="2 points and a sample"):
        parzen_metrics(points(num_points), decode, PRIOR, num_samples, 0, single_world())
