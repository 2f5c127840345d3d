"""Scores of classes and clusters, against their definitions written out slowly."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from aae_dist.evaluation.classes import class_scores, classification_error, clustering_scores
from aae_dist.evaluation.part_scores import PartScores, combined_score, smallest_spread
from aae_dist.priors import CategoricalPrior, GaussianPrior, Part, Prior, ProductPrior


def soft(num: int, classes: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num, classes, generator=draw, dtype=torch.float64).mul(2).softmax(1)


def slow_error(rows: list[list[float]], labels: list[int]) -> float:
    """Each cluster takes the label of the sample that is surest of it."""
    named = {}
    for cluster in range(len(rows[0])):
        surest = max(range(len(rows)), key=lambda i: rows[i][cluster])
        named[cluster] = labels[surest]
    clusters = [row.index(max(row)) for row in rows]
    wrong = [named[c] != label for c, label in zip(clusters, labels, strict=True)]
    return sum(wrong) / len(wrong)


def slow_nmi(a: list[int], b: list[int]) -> float:
    n = len(a)

    def entropy(parts: list[object]) -> float:
        shares = [parts.count(p) / n for p in set(parts)]
        return -sum(p * math.log(p) for p in shares)

    both = entropy(list(zip(a, b, strict=True)))
    return (entropy(list(a)) + entropy(list(b)) - both) / (
        (entropy(list(a)) + entropy(list(b))) / 2
    )


def slow_ari(a: list[int], b: list[int]) -> float:
    """Over all pairs of samples: together in both, in the first, in the second."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    first = [a[i] == a[j] for i, j in pairs]
    second = [b[i] == b[j] for i, j in pairs]
    both = sum(x and y for x, y in zip(first, second, strict=True))
    expected = sum(first) * sum(second) / len(pairs)
    return (both - expected) / ((sum(first) + sum(second)) / 2 - expected)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_scored_as_their_definitions_say(seed: int) -> None:
    probabilities = soft(90, 6, seed)
    draw = torch.Generator().manual_seed(100 + seed)
    labels = probabilities.argmax(1) % 4
    noisy = torch.rand(90, generator=draw) < 0.3
    labels[noisy] = torch.randint(4, (int(noisy.sum()),), generator=draw)
    found = clustering_scores(probabilities, labels)
    clusters = probabilities.argmax(1).tolist()
    assert found["clustering/error"] == pytest.approx(
        slow_error(probabilities.tolist(), labels.tolist())
    )
    assert found["clustering/nmi"] == pytest.approx(slow_nmi(clusters, labels.tolist()))
    assert found["clustering/ari"] == pytest.approx(slow_ari(clusters, labels.tolist()))


def test_perfect_clusters_have_perfect_scores_and_one_cluster_has_none() -> None:
    labels = torch.arange(40) % 5
    perfect = clustering_scores(torch.eye(5).double()[(labels + 2) % 5], labels)
    assert perfect == {"clustering/error": 0.0, "clustering/nmi": 1.0, "clustering/ari": 1.0}
    one = torch.zeros(40, 5).double()
    one[:, 3] = 1.0
    found = clustering_scores(one, labels)
    assert found["clustering/error"] == pytest.approx(0.8)
    assert found["clustering/nmi"] == pytest.approx(0.0)
    assert found["clustering/ari"] == pytest.approx(0.0)


def test_samples_without_a_label_are_left_out() -> None:
    probabilities, labels = soft(50, 4, 0), torch.arange(50) % 3
    hidden = labels.clone()
    hidden[::2] = -1
    assert clustering_scores(probabilities, hidden) == clustering_scores(
        probabilities[1::2], labels[1::2]
    )
    assert clustering_scores(probabilities, torch.full((50,), -1)) == {}
    assert math.isnan(classification_error(labels, torch.full((50,), -1)))
    wrong = (probabilities[1::2].argmax(1) != labels[1::2]).double().mean().item()
    assert classification_error(probabilities.argmax(1), hidden) == wrong


def test_even_and_sure_classes_score_one() -> None:
    assert class_scores(torch.eye(4)) == pytest.approx(
        {"codes/class_entropy": 1.0, "codes/confidence": 1.0}
    )
    assert class_scores(torch.full((9, 4), 0.25)) == pytest.approx(
        {"codes/class_entropy": 1.0, "codes/confidence": 0.25}
    )
    dead = torch.zeros(9, 4)
    dead[:, 1] = 1.0
    assert class_scores(dead)["codes/class_entropy"] == 0.0


def codes_of(prior: Prior, num: int, seed: int) -> Tensor:
    return prior.sample(num, torch.Generator().manual_seed(seed)).double()


def test_parts_have_scores_of_their_own_and_the_worst_stands_for_all() -> None:
    prior = ProductPrior([CategoricalPrior(4), GaussianPrior(2), GaussianPrior(1, std=3.0)])
    prior_nZ, codes = codes_of(prior, 400, 1), codes_of(prior, 400, 2)
    codes[:, :4] = (codes[:, :4] * 5).softmax(1)  # no classifier would mistake it for one-hot
    codes[:, 6] = 0.1 * codes[:, 6]
    metrics = PartScores(prior, 0).measure(codes, prior_nZ)
    assert "part_1/prior_match/c2st" not in metrics
    assert metrics["part_2/prior_match/c2st"] < 0.6 < 0.8 < metrics["part_3/prior_match/c2st"]
    assert metrics["prior_match/c2st"] == metrics["part_3/prior_match/c2st"]
    assert metrics["codes/smallest_spread"] == metrics["part_3/codes/smallest_spread"] < 0.15
    assert 0.8 < metrics["part_2/codes/smallest_spread"] < 1.2
    assert metrics["codes/confidence"] == metrics["part_1/codes/confidence"] > 0.97
    assert metrics["prior_match/num_samples"] == 400


def test_one_part_alone_is_scored_without_a_number() -> None:
    prior = GaussianPrior(2)
    assert prior.parts == (Part(slice(0, 2), prior),)
    metrics = PartScores(prior, 0).measure(codes_of(prior, 100, 2), codes_of(prior, 100, 1))
    assert not any(name.startswith("part_") for name in metrics)


def test_a_simplex_is_not_flat_but_codes_of_one_class_are() -> None:
    prior = CategoricalPrior(5)
    one_hot, other = codes_of(prior, 600, 0), codes_of(prior, 600, 1)
    assert 0.8 < smallest_spread(other, one_hot) < 1.2
    dead = other.clone()
    dead[:, 0], dead[:, 1] = dead[:, 0] + dead[:, 1], 0.0
    assert smallest_spread(dead, one_hot) < 1e-6


def test_the_score_of_a_run_falls_with_dead_classes() -> None:
    perfect = {"reconstruction/mse": 0.5, "reconstruction/variance": 1.0, "prior_match/c2st": 0.5}
    assert combined_score(perfect) == 0.5
    unsure = perfect | {"codes/class_entropy": 1.0, "codes/confidence": 0.25}
    assert combined_score(unsure) == 1.25
    assert combined_score(unsure | {"prior_match/c2st": 1.0}) == 1.5
