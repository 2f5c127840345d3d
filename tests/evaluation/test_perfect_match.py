"""A perfect match scores 0.5, 1.0 and 1.0 under every prior and latent size, and at every seed."""

import math
from itertools import product
from pathlib import Path
from statistics import mean

import pytest
import torch

from aae_dist.config.sections import model as sections
from aae_dist.evaluation import prior_match as null
from aae_dist.priors import build_prior
from aae_dist.sweeps.plan import load_sweep

DRAWS = 64
QUICK = Path(__file__).parents[2] / "configs" / "sweep" / "quick.yaml"
SWEPT = [(t.config.prior, t.config.model.latent_dim) for t in load_sweep([QUICK]).trials]
CASES = [
    *SWEPT,
    *product((sections.GaussianPrior(), sections.MixturePrior()), (16,)),
    *product(
        (
            sections.UniformPrior(),
            sections.LaplacePrior(),
            sections.StudentTPrior(),
            sections.SpherePrior(),
            sections.CategoricalPrior(),
        ),
        (4,),
    ),
    (sections.SwissRollPrior(), 2),
]
NAMES = ("prior_match/sliced_wasserstein", "prior_match/mmd")


def prior_and_draws(section, latent_dim, num_samples, seed):
    prior = build_prior(section, latent_dim)
    draw = torch.Generator().manual_seed(1000 + seed)
    return null.build_baseline(prior, num_samples, seed), (
        prior.sample(num_samples, draw).float() for _ in range(DRAWS)
    )


# These scored 1.56, 0.84 and 1.22 when codes were compared with a single prior sample.
@pytest.mark.parametrize(
    ("section", "seed"),
    [
        (sections.SwissRollPrior(), 0),
        (sections.SwissRollPrior(), 1),
        (sections.MixturePrior(), 1),
    ],
)
def test_no_luck_of_the_prior_sample_is_in_the_scores(section, seed):
    assert_means_are_one(section, 2, 200, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("section", "latent_dim"), CASES)
def test_normalised_statistics_of_the_prior_itself_are_one(section, latent_dim, seed):
    assert_means_are_one(section, latent_dim, 256, seed)


# The scores of one sample lie within 0.03 (gaussian, 16) to 0.17 (mixture, 8) of their mean, by one
# standard deviation: means of 64 draws are known to 0.02.
def assert_means_are_one(section, latent_dim, num_samples, seed):
    baseline, draws = prior_and_draws(section, latent_dim, num_samples, seed)
    statistics = (baseline.sliced_wasserstein, baseline.mmd)
    values = [[s(codes) / s.null for s in statistics] for codes in draws]
    for column in zip(*values, strict=True):
        assert mean(column) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("section", "latent_dim"), SWEPT)
def test_the_whole_scorecard_of_the_prior_itself_is_perfect(section, latent_dim):
    num_samples = 500
    baseline, draws = prior_and_draws(section, latent_dim, num_samples, seed=0)
    scores = [null.score(codes, baseline, seed) for seed, codes in enumerate(draws)]
    for name in NAMES:
        assert mean(s[name] for s in scores) == pytest.approx(1.0, abs=0.1)
    # All draws share the prior samples that the classifier sees, so that their mean varies a little
    # more than 64 independent ones would: four of their standard deviations, not three.
    assert abs(mean(s["prior_match/c2st"] for s in scores) - 0.5) < 4 * math.sqrt(
        0.25 / (num_samples * DRAWS)
    )
    held = [s["prior_match/c2st_low"] <= 0.5 <= s["prior_match/c2st_high"] for s in scores]
    assert mean(held) >= 0.85  # 95 % intervals; 0.86 or less has a chance of 1 in 300
