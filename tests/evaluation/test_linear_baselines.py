import math

import numpy as np
import pytest
import torch
from helpers.evaluating import Images, Networks, Normal
from helpers.ranks import single_world
from torch import Tensor

from aae_dist.evaluation import Evaluator
from aae_dist.evaluation.linear import LinearErrors, fit_pca, num_fitted, why_no_pca
from aae_dist.evaluation.part_scores import combined_score


def of_rank(rank: int, num: int, num_values: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, num_values, generator=torch.Generator().manual_seed(9))
    return 3 + torch.randn(num, rank, generator=generator) @ basis


def errors_of(pca: tuple[Tensor, Tensor] | None, samples: Tensor) -> dict[str, float]:
    errors = LinearErrors(pca)
    for part in samples.split(100):
        errors.add(part)
    return errors.metrics()


@pytest.mark.parametrize("num_values", [20, 300])  # fewer and more than samples
def test_a_pca_loses_what_the_slow_and_obvious_one_loses(num_values: int) -> None:
    train, test = of_rank(12, 200, num_values), of_rank(12, 100, num_values, seed=1)
    found = errors_of(fit_pca(train, 5), test)
    mean, test = train.double().mean(0), test.double()
    _, _, directions = np.linalg.svd((train.double() - mean).numpy(), full_matrices=False)
    kept = torch.from_numpy(directions[:5])
    centred = test - mean
    wanted = (centred - centred @ kept.T @ kept).square().mean().item()
    assert found["reconstruction/pca"] == pytest.approx(wanted, rel=1e-4)
    variance = (test - test.mean(0)).square().mean().item()
    assert found["reconstruction/variance"] == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("num_values", [20, 300])
def test_data_of_a_lower_rank_is_lost_nowhere(num_values: int) -> None:
    train, test = of_rank(3, 200, num_values), of_rank(3, 300, num_values, seed=1)
    assert errors_of(fit_pca(train, 5), test)["reconstruction/pca"] < 1e-8
    equal = torch.full((200, num_values), 2.0)
    found = errors_of(fit_pca(equal, 5), equal)
    assert found == {"reconstruction/variance": 0.0, "reconstruction/pca": 0.0}


def test_without_samples_to_fit_there_is_the_variance_alone() -> None:
    assert set(errors_of(None, of_rank(3, 30, 20))) == {"reconstruction/variance"}


@pytest.mark.parametrize(
    ("num_values", "latent_dim", "reason"),
    [
        (784, 32, None),
        (3 * 128 * 128, 100, None),
        (3 * 512 * 512, 16, "16 directions of 786,432 numbers need too many samples"),
        (10, 10, "10 latent dimensions for 10 numbers lose nothing"),
    ],
)
def test_a_pca_has_bounded_cost(num_values: int, latent_dim: int, reason: str | None) -> None:
    assert why_no_pca(num_values, latent_dim) == reason
    side = min(num_fitted(num_values), num_values)
    assert side <= 1024
    assert num_fitted(num_values) * num_values <= 1 << 25


class Training(Images):
    """Samples in two shards."""

    def __init__(self, num_samples: int, bad: tuple[int, ...] = (), lost: int = -1) -> None:
        super().__init__(num_samples, bad, lost)
        counts = np.array([num_samples // 2, num_samples - num_samples // 2])
        folder = type("Shard", (), {"folder": "/data"})
        self.manifest = type("Manifest", (), {"shards": (folder, folder), "counts": counts})


def test_an_evaluation_has_baselines_and_their_score() -> None:
    def evaluate(training: Training | None, num_samples: int = 64) -> dict[str, float]:
        images = Images(num_samples, bad=(3,))
        made = Evaluator(images, Normal(2), single_world(), 0, training=training)
        return made.evaluate(Networks()).metrics

    metrics = evaluate(Training(800, bad=(5,)), 600)
    train, test = Training(800).images.flatten(1) / 255, Images(600).images.flatten(1) / 255
    good = [i for i in range(800) if i != 5]
    wanted = errors_of(fit_pca(train[good], 2), test[[i for i in range(600) if i != 3]])
    assert {n: metrics[n] for n in wanted} == pytest.approx(wanted, rel=1e-6)
    score = metrics["reconstruction/mse"] / metrics["reconstruction/variance"]
    score += 2 * (metrics["prior_match/c2st"] - 0.5)
    assert metrics["evaluation/score"] == pytest.approx(score)
    for missing in (None, Training(800, lost=0), Training(6)):
        assert "reconstruction/pca" not in evaluate(missing)


def test_neither_goal_alone_scores_well() -> None:
    def score(mse: float, c2st: float, variance: float = 2.0) -> float:
        names = ("reconstruction/mse", "reconstruction/variance", "prior_match/c2st")
        return combined_score(dict(zip(names, (mse, variance, c2st), strict=True)))

    assert score(0.0, 0.5) == score(0.0, 0.45) == 0
    assert score(2.0, 0.5) == score(0.0, 1.0) == 1  # forgets the input; never meets the prior
    assert score(0.5, 0.6) == pytest.approx(0.45)
    assert math.isnan(score(0.5, math.nan))
    assert math.isnan(score(0.0, 0.5, variance=0.0))
