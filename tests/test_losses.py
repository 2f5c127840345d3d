"""Losses against their formulas written out."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from aae_dist import losses


def images(seed: int) -> torch.Tensor:
    return torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).double()


def test_reconstruction_losses_are_per_image_sums_and_means() -> None:
    x, y = images(0), images(1)
    square = ((x - y) ** 2).sum((1, 2, 3))
    assert torch.allclose(losses.squared_error_half_sum(x, y), square / 2)
    assert torch.allclose(losses.squared_error_mean(x, y), square / 18)
    entropy = -(y * x.log() + (1 - y) * (1 - x).log()).sum((1, 2, 3))
    assert torch.allclose(losses.cross_entropy_sum(x, y), entropy)


def test_adversarial_losses_are_the_logs_of_the_game() -> None:
    prior, codes = torch.tensor([0.3, -2.0]).double(), torch.tensor([1.5, 40.0]).double()
    expected = -torch.sigmoid(prior).log() - torch.sigmoid(-codes).log()
    assert torch.allclose(losses.discriminator_loss(prior, codes), expected)
    assert torch.allclose(losses.generator_loss(codes), -torch.sigmoid(codes).log())


def test_losses_stay_finite_for_extreme_logits() -> None:
    huge = torch.tensor([1e4, -1e4])
    assert bool(torch.isfinite(losses.discriminator_loss(huge, -huge)).all())
    assert bool(torch.isfinite(losses.generator_loss(huge)).all())


@pytest.mark.parametrize("prior_std", [1.0, 5.0])
def test_kl_is_that_of_torch_distributions(prior_std: float) -> None:
    mean, log_std = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, prior_std)).sum(1)
    assert torch.allclose(losses.gaussian_kl(mean, log_std, prior_std), expected)


def test_log_density_is_that_of_torch_distributions() -> None:
    z, mean, log_std = torch.randn(3, 4, 2).double()
    expected = Normal(mean, log_std.exp()).log_prob(z).sum(1)
    assert torch.allclose(losses.gaussian_log_density(z, mean, log_std), expected)
