"""Scores of samples, against the published formulas written slowly, and against what should move.

And against torchmetrics 1.9.0, torch-fidelity 0.4.0 and prdc 0.2, whose numbers stand here: they
are not among the packages of the tests.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.evaluating import Images, Networks, Normal

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.distributed.world import single
from aae_dist.errors import ConfigError
from aae_dist.evaluation import Evaluator
from aae_dist.evaluation.classes import probe_errors
from aae_dist.evaluation.features import haar, network_features, wavelet_features, wavelets
from aae_dist.evaluation.sample_scores import (
    FeatureSet,
    described,
    frechet_distance,
    pairwise_scores,
    scores,
)

NAMES = ("precision", "recall", "density", "coverage")


def sets(num_real: int, num_other: int, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(num_real, width, generator=draw, dtype=torch.float64)
    mix = torch.eye(width) + 0.3 * torch.randn(width, width, generator=draw)
    other = torch.randn(num_other, width, generator=draw, dtype=torch.float64) @ mix.double()
    return real, 0.8 * other + 0.2


def slow(real: np.ndarray, other: np.ndarray, k: int = 5) -> dict[str, float]:
    """Return all scores by their published formulas, entry by entry."""
    import scipy.linalg
    from scipy.spatial.distance import cdist

    means = real.mean(0) - other.mean(0)
    a, b = np.cov(real, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    n, m, width = len(real), len(other), real.shape[1]
    xx, yy, xy = (
        (p @ q.T / width + 1) ** 3 for p, q in ((real, real), (other, other), (real, other))
    )
    kernel = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    radii, own = (np.sort(cdist(x, x), axis=1)[:, k] for x in (real, other))
    distances = cdist(real, other)
    near = distances <= radii[:, None]
    return {
        "frechet_distance": means @ means + np.trace(a + b - 2 * root),
        "kernel_distance": kernel - 2 * xy.mean(),
        "precision": near.any(0).mean(),
        "recall": (distances <= own).any(1).mean(),
        "density": near.sum() / (k * m),
        "coverage": (distances.min(1) <= radii).mean(),
    }


def fast(real: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    described = FeatureSet.from_rows(real), FeatureSet.from_rows(other)
    return {"frechet_distance": frechet_distance(*described), **pairwise_scores(*described)}


@pytest.mark.parametrize(("num_real", "num_other"), [(600, 530), (100, 700)])
def test_scores_are_those_of_the_published_formulas(num_real, num_other):
    real, other = sets(num_real, num_other)
    found = fast(real, other)
    assert found == pytest.approx(slow(real.numpy(), other.numpy()), rel=1e-9, abs=1e-9)
    without = (
        FeatureSet.from_rows(real, with_radii=False),
        FeatureSet.from_rows(other, with_radii=False),
    )
    alone = pairwise_scores(*without)
    assert alone == {"kernel_distance": pytest.approx(found["kernel_distance"], rel=1e-9)}


def test_scores_are_those_of_torchmetrics_torch_fidelity_and_prdc():
    draw = np.random.default_rng(0)
    real = draw.standard_normal((600, 24))
    mix = np.eye(24) + 0.3 * draw.standard_normal((24, 24))
    other = 0.8 * draw.standard_normal((530, 24)) @ mix + 0.2
    found = fast(torch.from_numpy(real), torch.from_numpy(other))
    # torchmetrics: FrechetInceptionDistance with an identity for its network; torch-fidelity gives
    # 16.376467309338167.
    assert found["frechet_distance"] == pytest.approx(16.376467309338118, rel=1e-6)
    of_prdc = (0.16981132075471697, 0.855, 0.11584905660377359, 0.365)
    assert [found[name] for name in NAMES] == pytest.approx(of_prdc, rel=1e-6)
    # torch-fidelity's kernel_mmd, degree 3 and coefficient 1, takes equal numbers of samples.
    equal = fast(torch.from_numpy(real[:530]), torch.from_numpy(other))
    assert equal["kernel_distance"] == pytest.approx(0.8381703799438633, rel=1e-6)


def test_fewer_samples_than_features_have_a_distance_too():
    real, other = sets(20, 20)
    exact = slow(real.numpy(), other.numpy())["frechet_distance"]
    assert frechet_distance(
        FeatureSet.from_rows(real), FeatureSet.from_rows(other)
    ) == pytest.approx(exact, 1e-5)


def test_equal_sets_match_perfectly():
    real, _ = sets(300, 1)
    found = fast(real, real.clone())
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_packets_keep_all_there_is_and_know_position_and_frequency():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert haar(x).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-5)
    assert haar(torch.rand(1, 1, 7, 5)).shape == (1, 1, 4, 4, 3)
    stripes = torch.zeros(1, 1, 16, 16)
    stripes[..., ::2] = 1
    found = wavelets(stripes).unflatten(1, (16, 16))[0]
    assert found.abs().sum(1).nonzero().numel() == 2  # the mean, and the finest horizontal change
    assert wavelet_features((1, 28, 28)).of(torch.rand(2, 1, 28, 28)).shape == (2, 256)
    assert wavelet_features((3, 64, 64)).of(torch.rand(2, 3, 64, 64)).shape == (2, 912)


def test_features_have_a_hash_and_refuse_what_is_no_image():
    first, other = wavelet_features((1, 28, 28)), wavelet_features((1, 32, 32))
    assert first.hash == wavelet_features((1, 28, 28)).hash != other.hash
    assert first.number == int(first.hash[:12], 16) < 2**48
    with pytest.raises(ConfigError, match="needs images of at least 4 x 4"):
        wavelet_features((1, 1, 50))
    with pytest.raises(ConfigError, match="would give 5,120 features"):
        wavelet_features((20, 28, 28))


# What harms samples moves the right number, on real digits.


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    dataset = open_dataset("builtin://digits/validation", Data(train="builtin://digits/validation"))
    samples = dataset.load(np.arange(1200))
    return samples.images.float() / 255, samples.labels


def compared(real: torch.Tensor, others: list[torch.Tensor]) -> dict[str, list[float]]:
    first = FeatureSet.from_rows(wavelets(real))
    each = [
        {"frechet_distance": frechet_distance(first, other), **pairwise_scores(first, other)}
        for other in (FeatureSet.from_rows(wavelets(x)) for x in others)
    ]
    return {name: [found[name] for found in each] for name in each[0]}


def rises(values: list[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def test_blur_noise_and_a_missing_class_move_the_right_numbers(digits):
    images, labels = digits
    real, fresh = images[::2], images[1::2]
    draw = torch.Generator().manual_seed(0)

    noise = torch.randn(fresh.shape, generator=draw)
    noisy = compared(real, [(fresh + s * noise).clamp(0, 1) for s in (0, 0.08, 0.12, 0.16, 0.2)])
    kernel = torch.tensor([1.0, 2.0, 1.0])
    blur = (kernel[:, None] * kernel / 16)[None, None]
    blurred = [fresh]
    for _ in range(4):
        blurred.append(F.conv2d(blurred[-1], blur, padding=1))
    soft = compared(real, blurred)
    for found in (noisy, soft):
        for name in ("frechet_distance", "kernel_distance"):
            assert rises(found[name]), (name, found[name])
    # A light blur makes digits more alike, which precision and density do not mind.
    for name in ("precision", "density"):
        assert rises(noisy[name][::-1]), (name, noisy[name])
        assert noisy[name][0] > 4 * noisy[name][-1]

    # Digits are left out, one more each time: what remains is real, so precision stays.
    kept = [fresh[labels[1::2] >= first] for first in (0, 2, 4, 6, 8)]
    fewer = compared(real, kept)
    for name in ("frechet_distance", "kernel_distance"):
        assert rises(fewer[name]), (name, fewer[name])
    for name in ("recall", "coverage"):
        assert rises(fewer[name][::-1]), (name, fewer[name])
    assert min(fewer["precision"]) > 0.85 * fewer["precision"][0]


def test_the_floor_is_one_half_of_the_validation_samples_against_the_other(digits):
    rows = wavelets(digits[0])
    real, floor = described(rows)
    halves = FeatureSet.from_rows(rows[::2]), FeatureSet.from_rows(rows[1::2])
    assert floor["samples/frechet_floor"] == frechet_distance(*halves)
    assert abs(floor["samples/kernel_floor"]) < 1e-4
    perfect = scores(real, halves[0], halves[1])
    assert perfect["samples/frechet_distance"] < floor["samples/frechet_floor"]


# In evaluations.


def test_an_evaluation_scores_samples_and_says_by_what():
    images, networks = Images(600, (17,)), Networks()
    features = wavelet_features((1, 4, 4))
    result = Evaluator(images, Normal(2), single(), 0, features=features).evaluate(networks)
    found = result.metrics
    assert found["samples/num_samples"] == 599
    assert found["samples/features"] == features.number
    kept = [n for n in range(600) if n != 17]
    real = FeatureSet.from_rows(wavelets(images.images[kept].float() / 255))
    rebuilt = FeatureSet.from_rows(wavelets(networks.decode(result.images.codes)))
    assert found["reconstruction/frechet_distance"] == pytest.approx(
        frechet_distance(real, rebuilt)
    )
    assert set(NAMES) <= {name.removeprefix("samples/") for name in found}
    plain = Evaluator(images, Normal(2), single(), 0).evaluate(networks).metrics
    assert plain == {n: v for n, v in found.items() if n in plain}
    assert not any(name.startswith("samples/") for name in plain)


class Flat(torch.nn.Module):
    """A network of features whose weights are drawn."""

    def __init__(self, sample_shape, width=3, batched=False):
        super().__init__()
        self.layer = torch.nn.Linear(sample_shape[1] * sample_shape[2], width)
        self.batched = batched

    def forward(self, x):
        found = self.layer(x.flatten(1))
        return found - found.mean(0) if self.batched else found


def test_a_network_of_ones_own_is_checked_and_identified_by_its_weights():
    path, cpu = f"{__name__}:Flat", torch.device("cpu")
    import sys

    sys.modules.setdefault(__name__, sys.modules[Flat.__module__])
    first = network_features(path, (1, 4, 4), cpu)
    assert first.of(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    assert first.hash == network_features(path, (1, 4, 4), cpu).hash
    assert first.hash != network_features(path, (1, 4, 4), cpu, width=4).hash
    with pytest.raises(ConfigError, match="evaluation.features: Flat makes a sample's result dep"):
        network_features(path, (1, 4, 4), cpu, batched=True)
    with pytest.raises(ConfigError, match="evaluation.features.path: nothing:Here failed"):
        network_features("nothing:Here", (1, 4, 4), cpu)


# Probes of codes.


def test_probes_are_nearest_neighbours_and_ridge_regression():
    from scipy.spatial.distance import cdist

    draw = np.random.default_rng(0)
    labels = draw.integers(4, size=900)
    codes = draw.standard_normal((4, 6))[labels] + draw.standard_normal((900, 6))
    labels[::7] = -1
    found = probe_errors(torch.from_numpy(codes), torch.from_numpy(labels))

    x, y = codes[labels >= 0], labels[labels >= 0]
    nearest = cdist(x[1::2], x[::2]).argsort(1)[:, :5]
    votes = np.eye(4)[y[::2][nearest]]
    most = votes.sum(1).max(1, keepdims=True) == votes.sum(1)
    # Of the classes with most votes, that whose voters are nearest.
    ranks = (votes * np.arange(5)[:, None]).sum(1) + np.where(most, 0, np.inf)
    assert found["codes/knn_error"] == (ranks.argmin(1) != y[1::2]).mean()

    scaled = (x - x[::2].mean(0)) / x[::2].std(0, ddof=1)
    rows = np.sqrt(1e-3 * len(x[::2])) * np.eye(6)
    targets = np.eye(4)[y[::2]] - np.eye(4)[y[::2]].mean(0)
    weights = np.linalg.lstsq(
        np.vstack([scaled[::2], rows]), np.vstack([targets, np.zeros((6, 4))])
    )
    linear = (scaled[1::2] @ weights[0] + np.eye(4)[y[::2]].mean(0)).argmax(1)
    assert found["codes/linear_error"] == (linear != y[1::2]).mean()
    assert 0.05 < found["codes/linear_error"] < 0.5
    assert probe_errors(torch.from_numpy(codes), torch.full((900,), -1)) == {}
