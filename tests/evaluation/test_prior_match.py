import math

import pytest
import torch
from helpers import distances
from torch import Tensor

from aae_dist.evaluation import prior_match


def keyed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(num: int, dim: int, seed: int) -> Tensor:
    return torch.randn(num, dim, generator=keyed(seed))


def slow_mmd(a: Tensor, b: Tensor, bandwidth: float) -> float:
    """One kernel at a time, all distances at once, in float64."""
    total = 0.0
    for scale in prior_match.SCALES:
        mean = [
            torch.exp(-(torch.cdist(x.double(), y.double()) ** 2) / (2 * (scale * bandwidth) ** 2))
            .mean()
            .item()
            for x, y in ((a, a), (b, b), (a, b))
        ]
        total += mean[0] + mean[1] - 2 * mean[2]
    return math.sqrt(total / len(prior_match.SCALES))


def test_c2st_of_two_samples_of_one_distribution_is_near_chance():
    result = prior_match.c2st(normal(1000, 3, 1), normal(1000, 3, 2), keyed())
    assert abs(result.value - 0.5) < 3 * math.sqrt(0.25 / 1000)


def test_c2st_tells_disjoint_samples_apart():
    assert prior_match.c2st(normal(200, 2, 1) + 100, normal(200, 2, 2), keyed()).value == 1.0


def test_c2st_sees_a_shape_that_moments_do_not_show():
    uniform = (torch.rand(2000, 2, generator=keyed(1)) - 0.5) * math.sqrt(12)
    assert prior_match.c2st(uniform, normal(2000, 2, 2), keyed()).value > 0.6


def test_c2st_does_not_depend_on_units():
    a, b = normal(300, 2, 1), normal(300, 2, 2) * 2
    shift = torch.tensor([1024.0, 0.0])
    plain = prior_match.c2st(a, b, keyed()).value
    assert plain == prior_match.c2st(a * 16, b * 16, keyed()).value
    assert plain == pytest.approx(prior_match.c2st(a + shift, b + shift, keyed()).value, abs=0.02)


def test_c2st_repeats_itself_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first = prior_match.c2st(normal(100, 2, 1), normal(100, 2, 2), keyed(5))
    torch.rand(3)
    torch.set_rng_state(before)
    assert first == prior_match.c2st(normal(100, 2, 1), normal(100, 2, 2), keyed(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_c2st_trains_where_gradients_are_off():
    with torch.inference_mode():
        value = prior_match.c2st(normal(300, 2, 1) + 5, normal(300, 2, 2), keyed()).value
    assert value > 0.99


def test_c2st_survives_collapsed_codes():
    assert prior_match.c2st(torch.zeros(200, 2), normal(200, 2, 2), keyed()).value > 0.9


def test_interval_holds_the_share_and_narrows():
    low, high = prior_match.wilson_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert prior_match.wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert prior_match.wilson_interval(0.5, 10_000)[0] > 0.49


def test_sliced_wasserstein_of_a_shift_is_known():
    a = normal(500, 1, 1)
    directions = prior_match.projections(1, keyed())
    assert distances.sliced_wasserstein(a, a + 3, directions) == pytest.approx(3, rel=1e-5)


def test_sliced_wasserstein_equals_the_slow_version_and_ignores_order():
    a, b = normal(64, 4, 1), normal(64, 4, 2) * 2
    directions = prior_match.projections(4, keyed(), num=16)
    squares = [
        ((a @ d).sort().values - (b @ d).sort().values).square().mean().item()
        for d in directions.unbind(1)
    ]
    slow = math.sqrt(sum(squares) / len(squares))
    assert distances.sliced_wasserstein(a, b, directions) == pytest.approx(slow, rel=1e-5)
    assert distances.sliced_wasserstein(a.flip(0), b, directions) == pytest.approx(slow, rel=1e-5)


def test_projections_are_unit_vectors():
    norms = prior_match.projections(5, keyed()).norm(dim=0)
    assert torch.allclose(norms, torch.ones_like(norms))


@pytest.mark.parametrize("num", [20, 512, 700, 1025])
def test_mmd_in_blocks_equals_the_slow_version(num):
    a, b = normal(num, 3, 1), normal(num, 3, 2) * 1.2
    assert distances.mmd(a, b, 2.0) == pytest.approx(slow_mmd(a, b, 2.0), rel=1e-3)


def test_mmd_of_samples_far_apart_and_of_unequal_sizes():
    a, b = normal(300, 2, 1) * 50, normal(600, 2, 2)
    assert distances.mmd(a, b, 1.5) == pytest.approx(slow_mmd(a, b, 1.5), rel=1e-4)


def test_mmd_of_a_sample_with_itself_is_zero():
    a = normal(600, 2, 1)
    assert distances.mmd(a, a, 1.0) < 1e-3


def test_median_distance_scales_with_the_prior():
    samples = normal(200, 2, 1)
    assert prior_match.median_distance(samples * 3) == pytest.approx(
        3 * prior_match.median_distance(samples), rel=1e-5
    )
