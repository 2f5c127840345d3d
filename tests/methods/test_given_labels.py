"""Codes that hold the label: adversary and distances ask the same of the code of every label."""

import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import MODELS, build, global_batch, global_labels, tiny_config
from torch import Tensor

from aae_dist import losses
from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.methods.distances import PartwiseDistance, given_labels, total, weights_of_labels
from aae_dist.methods.method import Draws, MicroBatch
from aae_dist.methods.without_adversary import MatchingMethod
from aae_dist.models import PartwiseDiscriminator
from aae_dist.priors import CategoricalPrior, GaussianPrior, ProductPrior

STYLE = {"dims": 2, "prior": {"kind": "gaussian"}}
TYPE = {"dims": 3, "prior": {"kind": "categorical"}, "given": "label"}
BATCH = {"dims": 2, "prior": {"kind": "categorical"}, "given": "label"}
GIVEN: dict[str, Any] = {
    "model": {**MODELS["mlp"], "latent_dim": 7},
    "prior": {"kind": "product", "parts": (TYPE, STYLE, BATCH)},
}
STYLE_COLUMNS, BOTH = slice(3, 5), [0, 1, 2, 5, 6]


def part_of(step: int = 4, **method: Any) -> tuple[AdversarialMethod, MicroBatch, Tensor]:
    """Return a method, the one part of a step, and its labels; step 4 has masked rows."""
    config = tiny_config(**GIVEN, method={"kind": "adversarial", **method})
    _, built, inputs = build(config, single_world())
    assert isinstance(built, AdversarialMethod)
    images, valid = global_batch(config, step)
    labels = global_labels(config, step)
    (part,) = inputs.parts(images, valid, int(valid.sum()), step, labels)
    return built, part, labels


def test_a_prior_sample_holds_the_label_of_its_row_and_a_style_of_its_own() -> None:
    _, part, labels = part_of()
    types, batches = torch.unravel_index(labels, (3, 2))
    wanted = torch.cat([F.one_hot(types, 3), F.one_hot(batches, 2)], 1).double()
    assert torch.equal(part.z_prior_BZ[:, BOTH], wanted)
    config = tiny_config(**GIVEN)
    _, _, inputs = build(config, single_world())
    images, valid = global_batch(config, 4)
    (other,) = inputs.parts(images, valid, 24, 4, (labels + 1) % 6)
    assert torch.equal(other.z_prior_BZ[:, STYLE_COLUMNS], part.z_prior_BZ[:, STYLE_COLUMNS])
    unlabelled = inputs.prior.with_labels(torch.ones(2, 7), torch.tensor([-1, 5]))
    assert unlabelled.tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 1]]


def test_the_adversary_of_the_style_reads_every_given_part() -> None:
    method, part, _ = part_of()
    discriminator = method.discriminator
    assert isinstance(discriminator, PartwiseDiscriminator)
    assert discriminator.columns == (STYLE_COLUMNS,)
    before = discriminator(part.z_prior_BZ)
    assert before.shape == (24, 1)
    for columns in (slice(0, 3), STYLE_COLUMNS, slice(5, 7)):
        moved = part.z_prior_BZ.clone()
        moved[:, columns] = moved[:, columns].roll(1, 1)
        assert not torch.isclose(discriminator(moved), before).any()


def test_r1_is_of_the_style_alone_and_noise_leaves_labels_as_they_are() -> None:
    method, part, _ = part_of(r1_weight=0.7, r1_every=2, balance="none")
    plain, _, _ = part_of(balance="none")
    encoded = method.encode_once([part], lambda p: p.noise_regularization_BN)[0]
    added = method.discriminator_loss(encoded)[0] - plain.discriminator_loss(encoded)[0]
    z = part.z_prior_BZ.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(method.discriminator(z).sum(), z)
    assert bool((gradient[:, BOTH] != 0).any())
    squares = gradient[:, STYLE_COLUMNS].square().sum(1)
    expected = 0.5 * 0.7 * 2 * float(part.weights_B @ squares)
    assert float(added.detach()) == pytest.approx(expected, rel=1e-9)
    noisy, _, _ = part_of(input_noise=0.3)
    blurred = noisy.with_input_noise(part, part.z_prior_BZ, "codes") - part.z_prior_BZ
    assert torch.equal(blurred[:, BOTH], torch.zeros(24, 5).double())
    assert float(blurred[:, STYLE_COLUMNS].std()) == pytest.approx(0.3, rel=0.3)


LABELS = torch.tensor([0, 3, 3, 1, 1, 1] * 4)
LABELS[:3] = torch.tensor([5, 3, 3])  # a label of one row
KEPT = torch.ones(24, dtype=torch.bool)
KEPT[[4, 8, 15, 23]] = False


def samples(num: int = 24, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return two samples and directions."""
    draw = torch.Generator().manual_seed(seed)
    z, prior = torch.randn(2, num, 4, generator=draw, dtype=torch.float64)
    return z.requires_grad_(), prior, torch.randn(4, 7, generator=draw, dtype=torch.float64)


def slow_energy(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Return the energy distance by all pairs."""
    a, b = (t @ (directions / directions.norm(dim=0)) for t in (x, y))

    def pairs(p: Tensor, q: Tensor) -> Tensor:
        return (p[:, None] - q).abs().sum((0, 1))

    n = len(x)
    return ((2 * pairs(a, b)) / n**2 - (pairs(a, a) + pairs(b, b)) / (n * (n - 1))).mean()


@pytest.mark.parametrize("kind", ["energy", "mmd", "characteristic"])
def test_distances_with_labels_are_the_mean_over_labels_of_more_than_one_row(kind: str) -> None:
    z, prior, directions = samples()
    weights = KEPT.double() / KEPT.sum()
    product = ProductPrior([CategoricalPrior(6), GaussianPrior(4)], [0])
    codes = product.with_labels(torch.cat([torch.zeros(24, 6), prior], 1), LABELS)
    per_label, shares = weights_of_labels(product, codes, weights)
    assert shares is not None

    def unlabelled(own: Tensor) -> Tensor:
        x, y = z[own], prior[own]
        even = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
        if kind == "energy":
            return slow_energy(x, y, directions)
        if kind == "mmd":
            return losses.maximum_mean_discrepancy(x, y, even, 8.0)
        return losses.characteristic_distance(x, y, even, directions, 1.0, is_gaussian=False)

    if kind == "energy":
        found = losses.sliced_energy_distance(z, prior, weights, directions, LABELS)
    elif kind == "mmd":
        each = losses.maximum_mean_discrepancy(z, prior, per_label, 8.0)
        found = total([each], shares)
    else:
        each = losses.characteristic_distance(z, prior, per_label, directions, 1.0, False)
        found = total([each], shares)
    groups = [KEPT & (label == LABELS) for label in range(6)]
    slow = sum(unlabelled(own) * own.sum() / KEPT.sum() for own in groups if own.sum() > 1)
    assert isinstance(slow, Tensor)
    assert float(found.detach()) == pytest.approx(float(slow.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, slow)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    alone = ~KEPT | (LABELS == 5)
    assert torch.equal(gradients[0].abs().sum(1) == 0, alone)


def test_rows_that_are_alone_with_their_label_share_one() -> None:
    prior = ProductPrior([CategoricalPrior(3), GaussianPrior(2), CategoricalPrior(2)], [0, 2])
    labels, weights = torch.tensor([5, 0, 4, 0, 1, 1, 2]), torch.ones(7)
    codes = prior.with_labels(torch.zeros(7, 7), labels)
    found = given_labels(prior, codes, weights)
    assert found is not None
    assert found.tolist() == [6, 0, 6, 0, 1, 1, 6]
    weights[5] = 0  # a masked row does not count
    found = given_labels(prior, codes, weights)
    assert found is not None
    assert found.tolist() == [6, 0, 6, 0, 6, 6, 6]
    of_label, shares = weights_of_labels(prior, codes, weights / 6)
    assert shares is not None
    assert torch.allclose(shares, torch.tensor([2, 0, 0, 0, 0, 0, 4]) / 6)
    assert torch.allclose(of_label[6], torch.tensor([1, 0, 1, 0, 1, 0, 1]) / 4)
    assert given_labels(GaussianPrior(2), codes, weights) is None


METHODS = ("adversarial", "sliced_wasserstein", "mmd", "characteristic")


@cache
def built_distance(kind: str) -> Any:
    """Return the distance of a method that is built from a configuration."""
    config = tiny_config(**GIVEN, method={"kind": kind})
    _, method, _ = build(config, single_world())
    assert isinstance(method, MatchingMethod | AdversarialMethod)
    return method.distance


def distance_of(kind: str, z_GZ: Tensor, prior_GZ: Tensor, step: int) -> float:
    """Return the distance of a batch by that of `kind`."""
    draws = Draws(0, step, len(z_GZ), torch.device("cpu"), torch.float64)
    weights = torch.full((len(z_GZ),), 1 / len(z_GZ), dtype=torch.float64)
    return float(built_distance(kind)(z_GZ, prior_GZ, weights, draws))


@pytest.mark.parametrize("kind", METHODS)
def test_codes_that_match_over_all_labels_but_not_within_each_are_far_from_the_prior(
    kind: str,
) -> None:
    draw = torch.Generator().manual_seed(0)
    prior = ProductPrior([CategoricalPrior(3), GaussianPrior(2), CategoricalPrior(2)], [0, 2])
    match, told = [], []
    for step in range(40):
        labels = torch.randint(0, 6, (24,), generator=draw)
        samples = prior.with_labels(prior.sample(24, draw), labels).double()
        fresh = samples.clone()
        fresh[:, STYLE_COLUMNS] = torch.randn(24, 2, generator=draw).double()
        # The same styles, in another order: those above 0 go to the labels of the first types.
        sorted_by_style = fresh.clone()
        by_label, by_style = labels.argsort(), fresh[:, 3].argsort()
        sorted_by_style[by_label, STYLE_COLUMNS] = fresh[by_style][:, STYLE_COLUMNS]
        match.append(distance_of(kind, fresh, samples, step))
        told.append(distance_of(kind, sorted_by_style, samples, step))
    noise = torch.tensor(match).std() / math.sqrt(len(match))
    assert abs(sum(match) / len(match)) < 3 * noise  # no bias, though labels have four rows each
    assert sum(told) / len(told) > 10 * noise


def test_the_distance_without_given_parts_is_the_sliced_wasserstein_distance() -> None:
    z, prior, _ = samples()
    weights = torch.full((24,), 1 / 24, dtype=torch.float64)
    draws = Draws(0, 3, 24, torch.device("cpu"), torch.float64)
    found = PartwiseDistance(GaussianPrior(4), 9)(z, prior, weights, draws)
    directions = torch.randn(4, 9, generator=draws.generator("directions")).double()
    assert torch.equal(found, losses.sliced_wasserstein(z, prior, weights, directions))


def test_codes_that_descend_the_distance_lose_the_label_and_keep_the_width_of_the_prior() -> None:
    draw = torch.Generator().manual_seed(0)
    prior = ProductPrior([CategoricalPrior(12), GaussianPrior(2)], [0])
    distance = PartwiseDistance(prior, 16)
    labels = torch.arange(1200) % 12
    z = prior.with_labels(torch.randn(1200, 14, generator=draw), labels)
    z[:, 12:] = 0.5 * z[:, 12:] + labels[:, None] / 6 - 1
    for step in range(300):
        rows = torch.randperm(1200, generator=draw)[:48]
        codes = z[rows].requires_grad_()
        samples = prior.with_labels(prior.sample(48, draw), labels[rows])
        draws = Draws(0, step, 48, torch.device("cpu"), torch.float32)
        value = distance(codes, samples, torch.full((48,), 1 / 48), draws)
        (gradient,) = torch.autograd.grad(value, codes)
        z[rows] = (codes - 20 * gradient).detach()
    styles = torch.stack([z[labels == label, 12:] for label in range(12)])
    assert float(styles.mean(1).abs().max()) < 0.3  # of 1 at the start
    assert float(styles.std(1).mean()) == pytest.approx(1.0, abs=0.1)  # of 0.5


def test_a_batch_without_a_good_sample_has_no_distance() -> None:
    z, prior, directions = samples()
    found = losses.sliced_energy_distance(z, prior, torch.zeros(24).double(), directions, LABELS)
    assert float(found.detach()) == 0.0
    (gradient,) = torch.autograd.grad(found, z)
    assert torch.equal(gradient, torch.zeros_like(z))
