import itertools
import math

import pytest
import torch
from helpers import distances

from aae_dist.evaluation import prior_match
from aae_dist.priors import Prior


class Normal(Prior):
    def sample(self, num_samples, generator):
        return torch.randn(num_samples, self.latent_dim, generator=generator)


class Ring(Prior):
    def sample(self, num_samples, generator):
        angle = 2 * math.pi * torch.rand(num_samples, generator=generator)
        ring = 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
        return ring + 0.1 * torch.randn(num_samples, 2, generator=generator)


NAMES = ("prior_match/c2st", "prior_match/sliced_wasserstein", "prior_match/mmd")


@pytest.mark.parametrize("prior", [Normal(3), Ring(2)], ids=["normal", "ring"])
def test_a_perfect_match_scores_a_half_and_one_and_one(prior):
    baseline = prior_match.build_baseline(prior, 400, seed=0)
    scores = [
        prior_match.score(prior.sample(400, torch.Generator().manual_seed(seed)), baseline, seed)
        for seed in range(1, 9)
    ]
    c2st, wasserstein, mmd = (sum(s[name] for s in scores) / len(scores) for name in NAMES)
    assert abs(c2st - 0.5) < 3 * math.sqrt(0.25 / (400 * len(scores)))
    assert wasserstein == pytest.approx(1.0, abs=0.15)
    assert mmd == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("prior", [Normal(3), Ring(2)], ids=["normal", "ring"])
def test_a_shifted_sample_scores_clearly_worse(prior):
    baseline = prior_match.build_baseline(prior, 400, seed=0)
    shifted = prior.sample(400, torch.Generator().manual_seed(1)) + 1.0
    score = prior_match.score(shifted, baseline, 0)
    assert score["prior_match/c2st_low"] > 0.55
    assert score["prior_match/sliced_wasserstein"] > 3
    assert score["prior_match/mmd"] > 2
    assert score["prior_match/num_samples"] == 400


def rms(values):
    values = list(values)
    return math.sqrt(sum(v * v for v in values) / len(values))


def test_statistics_equal_the_slow_version_over_many_prior_samples():
    prior, num = Ring(2), 60
    baseline = prior_match.build_baseline(prior, num, seed=0)
    wasserstein, mmd = baseline.sliced_wasserstein, baseline.mmd
    draw = torch.Generator().manual_seed(2)
    codes = torch.randn(num, 2, generator=draw)
    samples = [prior.sample(num, draw) for _ in range(300)]

    def slow_wasserstein(a, b):
        return distances.sliced_wasserstein(a, b, wasserstein.directions)

    def slow_mmd(a, b):
        return distances.mmd(a, b, mmd.bandwidth)

    pairs = list(zip(samples[::2], samples[1::2], strict=True))
    for fast, slow in ((wasserstein, slow_wasserstein), (mmd, slow_mmd)):
        assert fast(codes) == pytest.approx(rms(slow(codes, s) for s in samples), rel=0.05)
        assert fast.null == pytest.approx(rms(slow(a, b) for a, b in pairs), rel=0.12)


def test_the_null_of_the_wasserstein_distance_is_that_of_its_own_samples(monkeypatch):
    drawn = []

    class Kept(Normal):
        def sample(self, num_samples, generator):
            drawn.append(super().sample(num_samples, generator))
            return drawn[-1]

    monkeypatch.setattr(prior_match, "NUM_SAMPLES", 5)
    fast = prior_match.build_baseline(Kept(2), 40, seed=0).sliced_wasserstein
    samples = [s for s in drawn[1:] if len(s) == 40]
    pairs = itertools.combinations(samples, 2)
    slow = rms([distances.sliced_wasserstein(a, b, fast.directions) for a, b in pairs])
    assert len(samples) == 5
    assert fast.null == pytest.approx(slow, rel=1e-4)


def test_a_prior_that_is_one_point_has_no_unit():
    class Point(Normal):
        def sample(self, num_samples, generator):
            return torch.zeros(num_samples, self.latent_dim)

    score = prior_match.score(torch.ones(16, 2), prior_match.build_baseline(Point(2), 16, 0), 0)
    assert math.isnan(score["prior_match/sliced_wasserstein"])
    assert score["prior_match/c2st"] == 1.0


def test_scores_do_not_depend_on_the_units_of_the_prior():
    class Wide(Normal):
        def sample(self, num_samples, generator):
            return 64 * super().sample(num_samples, generator)

    codes = 1.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    plain = prior_match.score(codes, prior_match.build_baseline(Normal(2), 200, 0), 0)
    wide = prior_match.score(64 * codes, prior_match.build_baseline(Wide(2), 200, 0), 0)
    assert wide == pytest.approx(plain, rel=1e-4)


def test_codes_that_are_not_finite_have_no_score():
    baseline = prior_match.build_baseline(Normal(2), 16, seed=0)
    codes = torch.zeros(16, 2)
    codes[3, 1] = torch.inf
    score = prior_match.score(codes, baseline, 0)
    assert all(math.isnan(score[name]) for name in NAMES)
    assert score["prior_match/num_samples"] == 16


def test_the_unit_of_the_mmd_is_a_function_of_the_prior_alone():
    samples = Normal(2).sample(100, torch.Generator().manual_seed(3))
    assert prior_match.median_distance(samples) == prior_match.median_distance(samples.flip(0))
