import math

import pytest
import torch

from aae_dist.evaluation import null, prior_match
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
    yardstick = null.build_yardstick(prior, 400, seed=0)
    scores = [
        null.score(prior.sample(400, torch.Generator().manual_seed(seed)), yardstick, seed)
        for seed in range(1, 9)
    ]
    c2st, wasserstein, mmd = (sum(s[name] for s in scores) / len(scores) for name in NAMES)
    assert abs(c2st - 0.5) < 3 * math.sqrt(0.25 / (400 * len(scores)))
    assert wasserstein == pytest.approx(1.0, abs=0.15)
    assert mmd == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("prior", [Normal(3), Ring(2)], ids=["normal", "ring"])
def test_a_shifted_sample_scores_clearly_worse(prior):
    yardstick = null.build_yardstick(prior, 400, seed=0)
    shifted = prior.sample(400, torch.Generator().manual_seed(1)) + 1.0
    score = null.score(shifted, yardstick, 0)
    assert score["prior_match/c2st_low"] > 0.55
    assert score["prior_match/sliced_wasserstein"] > 3
    assert score["prior_match/mmd"] > 2
    assert score["prior_match/num_samples"] == 400


def test_null_of_the_mmd_may_be_measured_on_fewer_rows(monkeypatch):
    prior = Normal(2)
    exact = null.build_yardstick(prior, 600, seed=0).null_mmd
    monkeypatch.setattr(null, "MMD_ROWS", 150)
    assert null.build_yardstick(prior, 600, seed=0).null_mmd == pytest.approx(exact, rel=0.1)


def test_scores_do_not_depend_on_the_units_of_the_prior():
    class Wide(Normal):
        def sample(self, num_samples, generator):
            return 64 * super().sample(num_samples, generator)

    codes = 1.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    plain = null.score(codes, null.build_yardstick(Normal(2), 200, 0), 0)
    wide = null.score(64 * codes, null.build_yardstick(Wide(2), 200, 0), 0)
    assert wide == pytest.approx(plain, rel=1e-4)


def test_codes_that_are_not_finite_have_no_score():
    yardstick = null.build_yardstick(Normal(2), 16, seed=0)
    codes = torch.zeros(16, 2)
    codes[3, 1] = torch.inf
    score = null.score(codes, yardstick, 0)
    assert all(math.isnan(score[name]) for name in NAMES)
    assert score["prior_match/num_samples"] == 16


def test_the_unit_of_the_mmd_is_a_function_of_the_prior_alone():
    samples = Normal(2).sample(100, torch.Generator().manual_seed(3))
    assert prior_match.median_distance(samples) == prior_match.median_distance(samples.flip(0))
