"""Losses as pure functions, one value per sample, so that callers can weight and mask samples.

Shapes: B samples on this rank, C H W image, Z latent_dim.
Source: Makhzani et al., Adversarial Autoencoders, arXiv 1511.05644 (AAE).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_error_half_sum(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return half the summed squared error of each image, shape (B): the cost of the AAE paper."""
    return 0.5 * (x_hat_BCHW - x_BCHW).square().flatten(1).sum(1)


def squared_error_mean(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return the mean squared error over pixels and channels of each image, shape (B)."""
    return (x_hat_BCHW - x_BCHW).square().flatten(1).mean(1)


def cross_entropy_sum(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return the summed binary cross-entropy of each image, shape (B); both in [0, 1]."""
    return F.binary_cross_entropy(x_hat_BCHW, x_BCHW, reduction="none").flatten(1).sum(1)


def absolute_error_sum(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return the summed absolute error of each image, shape (B)."""
    return (x_hat_BCHW - x_BCHW).abs().flatten(1).sum(1)


_EPSILON = 1e-8
"""Keeps logarithms finite for features and samples without counts, as in scvi-tools."""


def poisson_log_prob(x: Tensor, rate: Tensor) -> Tensor:
    """Return log Poisson(x; rate) in nats, of the shape of counts `x`; both in counts."""
    return x * (rate + _EPSILON).log() - rate - (x + 1).lgamma()


def negative_binomial_log_prob(x: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """Return log NB(x; mean, dispersion) in nats, of the shape of counts `x`.

    The variance is mean + mean^2 / dispersion: Lopez et al. 2018 (scVI), doi
    10.1038/s41592-018-0229-2, supplementary note 3.
    """
    log_total = (dispersion + mean + _EPSILON).log()
    return (
        dispersion * ((dispersion + _EPSILON).log() - log_total)
        + x * ((mean + _EPSILON).log() - log_total)
        + (x + dispersion).lgamma()
        - dispersion.lgamma()
        - (x + 1).lgamma()
    )


def zinb_log_prob(x: Tensor, mean: Tensor, dispersion: Tensor, dropout_logits: Tensor) -> Tensor:
    """Return the log of d * [x = 0] + (1 - d) * NB(x; mean, dispersion), d of `dropout_logits`.

    d = sigmoid(dropout_logits). In nats, of the shape of counts `x`. Source as for
    `negative_binomial_log_prob`.
    """
    kept = negative_binomial_log_prob(x, mean, dispersion) - F.softplus(dropout_logits)
    zero = torch.logaddexp(-F.softplus(-dropout_logits), kept)
    return torch.where(x < 0.5, zero, kept)


def _rates(parameters_BKCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return proportions times the total of each sample, (B, C, H, W)."""
    totals_B = x_BCHW.flatten(1).sum(1)
    return parameters_BKCHW[:, 0] * totals_B.view(-1, *[1] * (x_BCHW.ndim - 1))


def poisson_loss(parameters_BKCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return -log p(x) in nats, shape (B); K = 1: proportions (see `models.tables`).

    The rate is the proportion times the total of the sample: Lopez et al. 2018.
    """
    return -poisson_log_prob(x_BCHW, _rates(parameters_BKCHW, x_BCHW)).flatten(1).sum(1)


def negative_binomial_loss(parameters_BKCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return -log p(x) in nats, shape (B); K = 2: proportions and log dispersion.

    The mean is the proportion times the total of the sample: Lopez et al. 2018.
    """
    rate, dispersion = _rates(parameters_BKCHW, x_BCHW), parameters_BKCHW[:, 1].exp()
    return -negative_binomial_log_prob(x_BCHW, rate, dispersion).flatten(1).sum(1)


def zinb_loss(parameters_BKCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Return -log p(x) in nats, shape (B); K = 3: also dropout logits: Lopez et al. 2018."""
    rate, dispersion = _rates(parameters_BKCHW, x_BCHW), parameters_BKCHW[:, 1].exp()
    log_prob = zinb_log_prob(x_BCHW, rate, dispersion, parameters_BKCHW[:, 2])
    return -log_prob.flatten(1).sum(1)


def half_deviance(likelihood: str, x_BCHW: Tensor) -> Tensor:
    """Return the loss of the mean profile above that of a perfect fit, in nats, shape (B).

    The `likelihood` is poisson or another key of `COUNT_LOSSES`: those share the negative binomial.

    What half the summed squared error of the mean is for images. The mean profile is that of all
    samples, scaled to the total of each; the dispersion is 1, as at the start of training.
    """
    totals_B = x_BCHW.flatten(1).sum(1)
    profile = x_BCHW.sum(0) / totals_B.sum().clamp_min(1)
    rates = profile * totals_B.view(-1, *[1] * (x_BCHW.ndim - 1))
    if likelihood == "poisson":
        each = poisson_log_prob(x_BCHW, x_BCHW) - poisson_log_prob(x_BCHW, rates)
    else:
        one = torch.ones_like(x_BCHW)
        each = negative_binomial_log_prob(x_BCHW, x_BCHW, one)
        each = each - negative_binomial_log_prob(x_BCHW, rates, one)
    return each.flatten(1).sum(1)


COUNT_LOSSES = {
    "poisson": poisson_loss,
    "negative_binomial": negative_binomial_loss,
    "zinb": zinb_loss,
}


TINY = 1e-6
"""Least rate, and least probability, of which a logarithm is taken."""


def mixed_error(x_hat_B11D: Tensor, x_B11D: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the error of tables of several kinds of columns, in nats, shape (B).

    Half the squared error of real columns (a Gaussian of variance 1), half the Poisson deviance of
    counts, and the cross-entropy of categories: 0 for a perfect reconstruction of each.

    Args:
        x_hat_B11D: expected values: means, and probabilities of categories, (B, 1, 1, D).
        x_B11D: values; categories are one-hot.
        sizes: numbers of real columns, of counts, and of the values of each category.
    """
    hats, values = (t.flatten(1).split(list(sizes), 1) for t in (x_hat_B11D, x_B11D))
    error_B: Tensor = 0.5 * (hats[0] - values[0]).square().sum(1)
    rates, counts = hats[1].clamp_min(TINY), values[1]
    perfect = counts - torch.xlogy(counts, counts)
    error_B = error_B + (rates - counts * rates.log() - perfect).sum(1)
    for shares, one_hot in zip(hats[2:], values[2:], strict=True):
        error_B = error_B - (one_hot * shares.clamp_min(TINY).log()).sum(1)
    return error_B


RECONSTRUCTION_LOSSES = {
    **COUNT_LOSSES,
    "sum_half": squared_error_half_sum,
    "mean": squared_error_mean,
    "bce": cross_entropy_sum,
    "l1": absolute_error_sum,
}


def discriminator_loss(logits_prior_B: Tensor, logits_codes_B: Tensor) -> Tensor:
    """Return -log D(z_prior) - log(1 - D(z)), shape (B): prior samples are the positives.

    The discriminator's half of the AAE min-max game, with D = sigmoid(logit).
    """
    return F.softplus(-logits_prior_B) + F.softplus(logits_codes_B)


def generator_loss(logits_codes_B: Tensor) -> Tensor:
    """Return -log D(z), shape (B): the non-saturating form (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-logits_codes_B)


def least_squares_discriminator_loss(logits_prior_B: Tensor, logits_codes_B: Tensor) -> Tensor:
    """Return ((D(z_prior) - 1)^2 + D(z)^2) / 2, shape (B): Mao et al., arXiv 1611.04076, eq. 9."""
    return 0.5 * ((logits_prior_B - 1).square() + logits_codes_B.square())


def least_squares_generator_loss(logits_codes_B: Tensor) -> Tensor:
    """Return (D(z) - 1)^2 / 2, shape (B): Mao et al., arXiv 1611.04076, eq. 9."""
    return 0.5 * (logits_codes_B - 1).square()


def hinge_discriminator_loss(logits_prior_B: Tensor, logits_codes_B: Tensor) -> Tensor:
    """Return max(0, 1 - D(z_prior)) + max(0, 1 + D(z)), shape (B): arXiv 1705.02894, section 3."""
    return F.relu(1 - logits_prior_B) + F.relu(1 + logits_codes_B)


def hinge_generator_loss(logits_codes_B: Tensor) -> Tensor:
    """Return -D(z), shape (B): Lim and Ye, arXiv 1705.02894, section 3."""
    return -logits_codes_B


@dataclass(frozen=True)
class Adversary:
    """The losses of discriminator and generator on logits, one value per sample."""

    discriminator_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]


ADVERSARIES = {
    "bce": Adversary(discriminator_loss, generator_loss),
    "least_squares": Adversary(least_squares_discriminator_loss, least_squares_generator_loss),
    "hinge": Adversary(hinge_discriminator_loss, hinge_generator_loss),
}

MMD_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _KernelSum(torch.autograd.Function):
    """The sum of c / (c + squares) over widths c: autograd would keep a matrix for each of them."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor, widths: Sequence[float]) -> Tensor:
        ctx.save_for_backward(squares)
        ctx.widths = widths
        total = torch.zeros_like(squares)
        for c in widths:
            total += c / (c + squares)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (squares,) = ctx.saved_tensors
        total = torch.zeros_like(squares)
        for c in ctx.widths:
            total -= c / (c + squares).square()
        return gradient * total, None


def maximum_mean_discrepancy(
    z_NZ: Tensor, prior_NZ: Tensor, weights_N: Tensor, mean_square_distance: float
) -> Tensor:
    """Return the unbiased estimate of the squared MMD of two weighted samples, a scalar.

    Inverse multiquadratic kernels c / (c + |a - b|^2), summed over c = s * E|z - z'|^2 for the
    scales s of Tolstikhin et al., arXiv 1711.01558, section 4 (there 2 Z std^2 for a Gaussian).
    `weights_N` are 1 / n for n unmasked rows, of both samples, and 0 for masked ones;
    `mean_square_distance` is E|z - z'|^2 of two independent samples of the prior. Weights (M, N)
    choose the rows of M groups, whose estimates are returned, (M).
    """
    # A batch may have no unmasked row, and a group none.
    n = 1 / weights_N.square().sum(-1).clamp(min=1e-12)

    def mean_kernel(a_NZ: Tensor, b_NZ: Tensor) -> Tensor:
        cross = -2 * (a_NZ @ b_NZ.t())
        squares = cross + a_NZ.square().sum(1)[:, None] + b_NZ.square().sum(1)
        squares = squares.clamp(min=0)  # rounding
        widths = [scale * mean_square_distance for scale in MMD_SCALES]
        kernel: Tensor = _KernelSum.apply(squares, widths)  # type: ignore[no-untyped-call]
        mean: Tensor = torch.linalg.vecdot(weights_N @ kernel, weights_N)
        return mean

    def without_pairs_of_itself(mean: Tensor) -> Tensor:
        return (mean - len(MMD_SCALES) / n) * n / (n - 1).clamp(min=1)

    within = without_pairs_of_itself(mean_kernel(z_NZ, z_NZ))
    within = within + without_pairs_of_itself(mean_kernel(prior_NZ, prior_NZ))
    return within - 2 * mean_kernel(z_NZ, prior_NZ)


def sliced_wasserstein(
    z_NZ: Tensor,
    prior_NZ: Tensor,
    weights_N: Tensor,
    directions_ZP: Tensor,
    labels_N: Tensor | None = None,
) -> Tensor:
    """Return the mean squared Wasserstein-2 distance along directions, a scalar.

    Kolouri et al., arXiv 1804.01947, equation 14: in one dimension, sort and compare. `weights_N`
    are 1 / n for n unmasked rows, of both samples, and 0 for masked ones; the P directions may have
    any length. With labels, whole numbers, codes are compared with prior samples of their label
    alone; weights may then differ among labels.
    """
    unit_ZP = directions_ZP / directions_ZP.norm(dim=0)
    # Masked rows go to the end of both orders, where their difference is 0.
    end = torch.finfo(z_NZ.dtype).max / 4
    masked_N1 = weights_N[:, None] == 0
    projected = [x @ unit_ZP for x in (z_NZ, prior_NZ)]
    if labels_N is not None:
        # In both orders each label has a range of its own, with as many rows.
        used = torch.stack(projected).detach().masked_fill(masked_N1, 0.0)
        apart_N1 = (used.max() - used.min() + 1) * labels_N[:, None]
        projected = [x_NP + apart_N1 for x_NP in projected]
    z_NP, prior_NP = (x_NP.masked_fill(masked_N1, end) for x_NP in projected)
    squares_NP = (z_NP.sort(dim=0).values - prior_NP.sort(dim=0).values).square()
    mean: Tensor
    if labels_N is None:
        mean = squares_NP.sum() * weights_N.max() / unit_ZP.shape[1]
    else:
        order_N = labels_N.masked_fill(masked_N1[:, 0], end).argsort()
        mean = weights_N[order_N] @ squares_NP.mean(1)
    return mean


def sliced_energy_distance(
    z_NZ: Tensor, prior_NZ: Tensor, weights_N: Tensor, directions_ZP: Tensor, labels_N: Tensor
) -> Tensor:
    """Return the mean energy distance of codes and prior samples of a label, a scalar.

    2 E|x - y| - E|x - x'| - E|y - y'| of Szekely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018,
    along each direction and per label, weighted by its rows; a label of one row counts for 0. The
    estimate has no bias: its mean at the match is 0 also for few rows, where the Wasserstein
    distance is least for codes narrower than the prior (of 10 rows, by a fifth). Arguments as for
    `sliced_wasserstein`.
    """
    unit_ZP = directions_ZP / directions_ZP.norm(dim=0)
    projected = torch.stack([x @ unit_ZP for x in (z_NZ, prior_NZ)])
    # Masked rows are one more label, behind all others, that counts for 0.
    masked = labels_N.max() + 1
    labels_N = torch.where(weights_N > 0, labels_N, masked)
    sorted_N = labels_N.sort().values
    first_N = torch.searchsorted(sorted_N, sorted_N)
    size_N = torch.searchsorted(sorted_N, sorted_N, right=True) - first_N
    share_N = weights_N.max() * ((sorted_N < masked) & (size_N > 1))
    # In order each label has a range of its own, so that all are sorted at once.
    apart_N1 = (projected.max() - projected.min() + 1).detach() * labels_N[:, None]
    x_NP, y_NP = projected + apart_N1

    def over_pairs(x_MP: Tensor, factor_N: Tensor) -> Tensor:
        """Return the sum of factor * |x - x'| over pairs within labels, of m rows per row: (P)."""
        m = len(x_MP) // len(factor_N)
        first_M, size_M, factor_M = (
            t.repeat_interleave(m) for t in (m * first_N, m * size_N, factor_N)
        )
        rank_M = torch.arange(len(x_MP), device=x_MP.device) - first_M
        return (factor_M * (2 * rank_M - size_M + 1)) @ x_MP.sort(dim=0).values

    across_N = share_N * 2 / size_N
    within_N = across_N + share_N * 2 / (size_N - 1).clamp(min=1)
    each = over_pairs(torch.cat([x_NP, y_NP]), across_N)
    each = each - over_pairs(x_NP, within_N) - over_pairs(y_NP, within_N)
    return each.mean()


NUM_KNOTS, LAST_KNOT = 17, 3.0
"""Arguments of the characteristic functions, from 0 to 3 over the prior's standard deviation."""


def characteristic_distance(
    z_NZ: Tensor,
    prior_NZ: Tensor,
    weights_N: Tensor,
    directions_ZP: Tensor,
    std: float,
    is_gaussian: bool,
) -> Tensor:
    """Return the unbiased squared distance of characteristic functions along directions, a scalar.

    Along each direction the empirical characteristic function of the codes is compared with that of
    the prior: mean over directions of sum_k w_k |phi_z(t_k) - phi_prior(t_k)|^2, the statistic of
    Epps and Pulley (1983) as SIGReg uses it (LeJEPA, arXiv 2511.08544), for any prior. The 17 knots
    t_k run from 0 to 3 over `std`, the prior's standard deviation per dimension; w_k are those of
    the trapezoid rule times exp(-(std t)^2 / 2), scaled to a sum of 1. The mean at the match is 0,
    so that it is negative for some batches.

    With `is_gaussian` the prior is N(0, std^2 I), whose function exp(-(std t)^2 / 2) is exact; else
    the prior samples give it. `weights_N` are 1 / n for n unmasked rows, of both samples, and 0 for
    masked ones; the P directions may have any length. Weights (M, N) choose the rows of M groups,
    whose distances are returned, (M).
    """
    unit_ZP = directions_ZP / directions_ZP.norm(dim=0)
    scaled_K, window_K, weights_K = _knots(z_NZ)
    # A batch may have no unmasked row, and a group none.
    n = 1 / weights_N.square().sum(-1).clamp(min=1e-12)[..., None, None]

    def function(x_NZ: Tensor) -> tuple[Tensor, Tensor]:
        angles_NPK = (x_NZ @ unit_ZP)[..., None] * (scaled_K / std)
        real, imaginary = (torch.tensordot(weights_N, part, 1) for part in (
            angles_NPK.cos(), angles_NPK.sin()
        ))  # fmt: skip
        return real, imaginary

    def unbiased_square(real_PK: Tensor, imaginary_PK: Tensor) -> Tensor:
        """Return |phi|^2 without each row's product with itself, which is 1."""
        square = real_PK.square() + imaginary_PK.square()
        return (square - 1 / n) * n / (n - 1).clamp(min=1)

    real_PK, imaginary_PK = function(z_NZ)
    if is_gaussian:
        own_PK = window_K.square()
        cross_PK = real_PK * window_K
    else:
        real, imaginary = function(prior_NZ)
        own_PK = unbiased_square(real, imaginary)
        cross_PK = real_PK * real + imaginary_PK * imaginary
    distance_PK = unbiased_square(real_PK, imaginary_PK) + own_PK - 2 * cross_PK
    return (distance_PK @ weights_K).mean(-1)


def _knots(z_NZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the knots over the prior's standard deviation, exp(-t^2 / 2) there, and weights."""
    scaled_K = torch.linspace(0, LAST_KNOT, NUM_KNOTS, dtype=z_NZ.dtype, device=z_NZ.device)
    window_K = torch.exp(-0.5 * scaled_K.square())
    trapezoid_K = torch.ones_like(scaled_K)
    trapezoid_K[[0, -1]] = 0.5
    weights_K = trapezoid_K * window_K / (trapezoid_K * window_K).sum()
    # At 0 both functions are 1, so that knot counts in the sum of the weights alone.
    return scaled_K[1:], window_K[1:], weights_K[1:]


def gaussian_kl(mean_BZ: Tensor, log_std_BZ: Tensor, prior_std: float) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, prior_std^2 I)) in nats, shape (B).

    Kingma and Welling, arXiv 1312.6114, appendix B, with a prior of any scale.
    """
    ratio_BZ = (log_std_BZ.exp().square() + mean_BZ.square()) / prior_std**2
    return (0.5 * (ratio_BZ - 1.0) - log_std_BZ + math.log(prior_std)).sum(1)


def gaussian_log_density(z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor) -> Tensor:
    """Return log N(z; mean, std^2) in nats, shape (B)."""
    scaled_BZ = (z_BZ - mean_BZ) * (-log_std_BZ).exp()
    return (-0.5 * scaled_BZ.square() - log_std_BZ - 0.5 * math.log(2 * math.pi)).sum(1)
