"""`aae_dist.metrics`: the scores of runs as functions of codes and a prior."""

from typing import Any

import pytest
import torch

import aae_dist
from aae_dist.evaluation.prior_match import build_baseline, score


def test_scores_are_those_of_runs() -> None:
    prior = aae_dist.priors.MixturePrior(2, num_modes=5)
    codes = 2 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    expected = score(codes, build_baseline(prior, 200, 7), 7)
    assert aae_dist.metrics.prior_match(codes.numpy(), prior, seed=7) == expected
    accuracy = aae_dist.metrics.c2st(codes, prior, seed=7)
    assert accuracy.value == expected["prior_match/c2st"]
    assert accuracy.low < accuracy.value < accuracy.high
    distance = aae_dist.metrics.sliced_wasserstein(codes, prior, seed=7)
    assert distance == expected["prior_match/sliced_wasserstein"]
    assert aae_dist.metrics.mmd(codes, prior, seed=7) == expected["prior_match/mmd"]


def test_a_prior_matches_itself_and_not_another() -> None:
    prior = aae_dist.priors.GaussianPrior(3)
    own = prior.sample(400, torch.Generator().manual_seed(2))
    assert aae_dist.metrics.c2st(own, prior).value < 0.6
    assert aae_dist.metrics.c2st(own + 5, prior).value > 0.95


@pytest.mark.parametrize("prior", ["gaussian", aae_dist.priors.GaussianPrior])
def test_what_is_no_prior_is_refused(prior: Any) -> None:
    with pytest.raises(ValueError, match="prior should be an object"):
        aae_dist.metrics.c2st(torch.zeros(9, 2), prior)


@pytest.mark.parametrize(
    "codes", [torch.zeros(9, 3), torch.zeros(9), torch.zeros(3, 2), torch.full((9, 2), torch.nan)]
)
def test_wrong_codes_are_refused(codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes must"):
        aae_dist.metrics.c2st(codes, aae_dist.priors.GaussianPrior(2))
