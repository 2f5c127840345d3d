"""Likelihoods of counts equal torch.distributions and the formulas of scvi-tools to 1e-6."""

import torch
from torch.distributions import NegativeBinomial, Poisson
from torch.nn.functional import softplus

from aae_dist import losses

DRAW = torch.Generator().manual_seed(0)
MEAN = torch.rand(40, 7, generator=DRAW, dtype=torch.float64) * 30 + 0.01
X = torch.poisson(MEAN, generator=DRAW)
THETA = torch.rand(7, generator=DRAW, dtype=torch.float64) * 4 + 0.1
LOGITS = torch.randn(40, 7, generator=DRAW, dtype=torch.float64)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_poisson_is_that_of_torch() -> None:
    assert_close(losses.poisson_log_prob(X, MEAN), Poisson(MEAN).log_prob(X))


def test_negative_binomial_is_that_of_torch() -> None:
    expected = NegativeBinomial(THETA, logits=(MEAN / THETA).log()).log_prob(X)
    assert_close(losses.negative_binomial_log_prob(X, MEAN, THETA), expected)


def scvi_log_zinb_positive(x, mu, theta, pi, eps=1e-8):
    """The formula of scvi-tools (scvi.distributions), written out again."""
    softplus_pi = softplus(-pi)
    log_theta_mu_eps = torch.log(theta + mu + eps)
    pi_theta_log = -pi + theta * (torch.log(theta + eps) - log_theta_mu_eps)
    case_zero = softplus(pi_theta_log) - softplus_pi
    case_non_zero = (
        -softplus_pi
        + pi_theta_log
        + x * (torch.log(mu + eps) - log_theta_mu_eps)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return (x < eps) * case_zero + (x > eps) * case_non_zero


def test_zero_inflated_is_that_of_scvi_tools_and_the_mixture() -> None:
    found = losses.zinb_log_prob(X, MEAN, THETA, LOGITS)
    assert (X == 0).any()
    assert_close(found, scvi_log_zinb_positive(X, MEAN, THETA, LOGITS))
    kept = NegativeBinomial(THETA, logits=(MEAN / THETA).log()).log_prob(X).exp()
    dropped = LOGITS.sigmoid()
    assert_close(found, (dropped * (X == 0) + (1 - dropped) * kept).log())


def test_losses_scale_proportions_to_the_total_of_each_sample() -> None:
    proportions = torch.rand(40, 7, generator=DRAW, dtype=torch.float64).softmax(1)
    log_theta = THETA.log().expand_as(proportions)
    parameters = torch.stack([proportions, log_theta, LOGITS], dim=1)
    rate = proportions * X.sum(1, keepdim=True)
    nb = losses.negative_binomial_log_prob(X, rate, THETA)
    zinb = losses.zinb_log_prob(X, rate, THETA, LOGITS)
    assert_close(losses.poisson_loss(parameters[:, :1], X), -Poisson(rate).log_prob(X).sum(1))
    assert_close(losses.negative_binomial_loss(parameters[:, :2], X), -nb.sum(1))
    assert_close(losses.zinb_loss(parameters, X), -zinb.sum(1))


def test_samples_without_counts_have_finite_losses_and_gradients() -> None:
    x = torch.zeros(3, 7)
    for number, loss in enumerate(losses.COUNT_LOSSES.values(), 1):
        parameters = torch.full((3, number, 7), 1 / 7, requires_grad=True)
        loss(parameters, x).sum().backward()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all()


def test_half_deviance_is_zero_for_equal_profiles_and_else_positive() -> None:
    same = torch.arange(1.0, 8.0).expand(5, 7)
    for likelihood in losses.COUNT_LOSSES:
        assert losses.half_deviance(likelihood, same).abs().max() < 1e-4
        assert (losses.half_deviance(likelihood, X) > 0).all()
