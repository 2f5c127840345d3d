"""Losses against their formulas written out."""

import cmath
import math

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
    assert torch.allclose(losses.absolute_error_sum(x, y), (x - y).abs().sum((1, 2, 3)))
    entropy = -(y * x.log() + (1 - y) * (1 - x).log()).sum((1, 2, 3))
    assert torch.allclose(losses.cross_entropy_sum(x, y), entropy)


def test_adversarial_losses_are_the_logs_of_the_game() -> None:
    prior, codes = torch.tensor([0.3, -2.0]).double(), torch.tensor([1.5, 40.0]).double()
    expected = -torch.sigmoid(prior).log() - torch.sigmoid(-codes).log()
    assert torch.allclose(losses.discriminator_loss(prior, codes), expected)
    assert torch.allclose(losses.generator_loss(codes), -torch.sigmoid(codes).log())


def test_least_squares_and_hinge_are_their_formulas() -> None:
    prior, codes = torch.tensor([0.3, 2.0]).double(), torch.tensor([-1.5, 0.2]).double()
    squares = losses.ADVERSARIES["least_squares"]
    expected = ((prior - 1) ** 2 + codes**2) / 2
    assert torch.allclose(squares.discriminator_loss(prior, codes), expected)
    assert torch.allclose(squares.generator_loss(codes), (codes - 1) ** 2 / 2)
    hinge = losses.ADVERSARIES["hinge"]
    assert hinge.discriminator_loss(prior, codes).tolist() == pytest.approx([0.7, 1.2])
    assert torch.equal(hinge.generator_loss(codes), -codes)


def slow_mmd(x: torch.Tensor, y: torch.Tensor, square: float) -> float:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        widths = [s * square for s in losses.MMD_SCALES]
        return sum(c / (c + float((a - b).square().sum())) for c in widths)

    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (n * (n - 1))
            total -= 2 * kernel(x[i], y[j]) / n**2
    return total


def slow_sliced_wasserstein(x: torch.Tensor, y: torch.Tensor, directions: torch.Tensor) -> float:
    total = 0.0
    for direction in directions.t():
        unit = direction / direction.norm()
        pairs = zip(sorted((x @ unit).tolist()), sorted((y @ unit).tolist()), strict=True)
        total += sum((a - b) ** 2 for a, b in pairs) / len(x)
    return total / directions.shape[1]


def test_distances_of_samples_are_their_formulas_without_masked_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 3, generator=draw).double()
    y = y + 1
    valid = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()
    weights = valid.double() / valid.sum()
    directions = torch.randn(3, 5, generator=draw).double()
    x.requires_grad_()
    mmd = losses.maximum_mean_discrepancy(x, y, weights, 6.0)
    wasserstein = losses.sliced_wasserstein(x, y, weights, directions)
    a, b = x.detach()[valid], y[valid]
    assert mmd.item() == pytest.approx(slow_mmd(a, b, 6.0), rel=1e-9)
    assert wasserstein.item() == pytest.approx(slow_sliced_wasserstein(a, b, directions), rel=1e-9)
    for distance in (mmd, wasserstein):
        (gradient,) = torch.autograd.grad(distance, x, retain_graph=True)
        assert bool(gradient.isfinite().all())
        assert torch.equal(gradient.abs().sum(1) > 0, valid)


def slow_characteristic(
    x: torch.Tensor, y: torch.Tensor | None, directions: torch.Tensor, std: float
) -> float:
    """Sum over pairs of different rows, by complex numbers; `y` None stands for the Gaussian."""
    knots = [3 * k / 16 for k in range(17)]
    weights = [math.exp(-k * k / 2) * (0.5 if n in (0, 16) else 1) for n, k in enumerate(knots)]
    total = 0.0
    for direction in directions.t():
        unit = direction / direction.norm()
        a = (x @ unit).tolist()
        b = None if y is None else (y @ unit).tolist()
        for knot, weight in zip(knots, weights, strict=True):

            def pairs(values: list[float], t: float) -> float:
                n = len(values)
                found = (
                    math.cos(t * (values[i] - values[j]))
                    for i in range(n) for j in range(n) if i != j
                )  # fmt: skip
                return sum(found) / (n * (n - 1))

            t = knot / std
            mean = sum(cmath.exp(1j * t * v) for v in a) / len(a)
            target = (
                complex(math.exp(-knot * knot / 2))
                if b is None
                else sum(cmath.exp(1j * t * v) for v in b) / len(b)
            )
            own = abs(target) ** 2 if b is None else pairs(b, t)
            square = pairs(a, t) + own - 2 * (mean * target.conjugate()).real
            total += weight / sum(weights) * square
    return total / directions.shape[1]


@pytest.mark.parametrize("is_gaussian", [True, False])
def test_the_characteristic_distance_is_its_formula_and_its_gradient_that_of_its_values(
    is_gaussian: bool,
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 3, generator=draw).double()
    valid = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()
    weights = valid.double() / valid.sum()
    directions = torch.randn(3, 5, generator=draw).double()

    def distance(z: torch.Tensor) -> torch.Tensor:
        return losses.characteristic_distance(z, y, weights, directions, 2.0, is_gaussian)

    slow = slow_characteristic(x[valid], None if is_gaussian else y[valid], directions, 2.0)
    assert distance(x).item() == pytest.approx(slow, rel=1e-9)
    assert torch.autograd.gradcheck(distance, x.requires_grad_())
    (gradient,) = torch.autograd.grad(distance(x), x)
    assert torch.equal(gradient.abs().sum(1) > 0, valid)


@pytest.mark.parametrize("is_gaussian", [True, False])
def test_the_mean_of_the_characteristic_distance_is_zero_at_the_match(is_gaussian: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.full((32,), 1 / 32).double()

    def distance(shift: float) -> float:
        x, y = 2 * torch.randn(2, 32, 4, generator=draw).double()
        directions = torch.randn(4, 16, generator=draw).double()
        return losses.characteristic_distance(
            x + shift, y, weights, directions, 2.0, is_gaussian
        ).item()

    at_match = torch.tensor([distance(0.0) for _ in range(200)])
    assert abs(at_match.mean()) < 3 * at_match.std() / math.sqrt(200)
    assert at_match.min() < 0
    far = torch.tensor([distance(1.0) for _ in range(200)])
    assert far.mean() > 20 * at_match.std() / math.sqrt(200)


def test_the_gradient_of_the_discrepancy_is_that_of_its_values_and_keeps_few_matrices() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 3, generator=draw).double()
    weights = torch.full((9,), 1 / 9).double()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def discrepancy(z: torch.Tensor) -> torch.Tensor:
        return losses.maximum_mean_discrepancy(z, y, weights, 6.0)

    assert torch.autograd.gradcheck(discrepancy, x.requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        discrepancy(x)
    # Two matrices of pairs have a gradient; of each, seven kernels would be kept.
    assert sum(tensor.shape == (9, 9) for tensor in kept) <= 8


def test_distances_of_samples_fall_as_they_come_closer() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 400, 2, generator=draw).double()
    weights, directions = torch.full((400,), 1 / 400).double(), torch.randn(2, 64).double()
    for distance in (
        lambda z: losses.maximum_mean_discrepancy(z, y, weights, 4.0),
        lambda z: losses.sliced_wasserstein(z, y, weights, directions),
    ):
        values = [distance(x + shift).item() for shift in (0.0, 0.5, 2.0)]
        assert values == sorted(values)
        assert abs(values[0]) < 0.05 * values[2]


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
