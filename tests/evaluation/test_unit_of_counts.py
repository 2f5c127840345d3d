"""The unit of weights for counts: what a code explains, not the noise."""

import pytest
import torch
from helpers.cells import simulated_cells

from aae_dist.evaluation.linear import LEAST_UNIT, explainable_loss
from aae_dist.losses import half_deviance, negative_binomial_log_prob, poisson_log_prob


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "zinb"])
def test_the_unit_is_near_what_the_true_types_explain(likelihood: str) -> None:
    counts, types = simulated_cells(1000, 60)
    x, y = torch.from_numpy(counts).double(), torch.from_numpy(types)
    totals = x.sum(1, keepdim=True)
    of_type = torch.stack([x[y == k].sum(0) / x[y == k].sum() for k in range(6)])[y]
    of_all = x.sum(0) / x.sum()

    def log_prob(shares: torch.Tensor) -> float:
        rates = shares * totals
        if likelihood == "poisson":
            return poisson_log_prob(x, rates).sum(1).mean().item()
        one = torch.ones_like(x)
        return negative_binomial_log_prob(x, rates, one).sum(1).mean().item()

    explained = log_prob(of_type) - log_prob(of_all)
    unit = explainable_loss(likelihood, x[:, None, None], 8)
    assert 0.5 * explained < unit < 2 * explained
    assert unit < 0.5 * half_deviance(likelihood, x).mean()


def test_of_noise_a_small_unit_remains() -> None:
    x = torch.poisson(torch.full((400, 30), 5.0), generator=torch.Generator().manual_seed(0))
    whole = half_deviance("poisson", x.double()).mean().item()
    assert LEAST_UNIT * whole <= explainable_loss("poisson", x, 4) < 0.2 * whole
    assert explainable_loss("poisson", torch.zeros(1, 30), 4) == 0.0
