import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers.runs import VALIDATION

from aae_dist.cli import main
from aae_dist.evaluation.dimension import (
    Dimension,
    intrinsic_dimension,
    neighbour_distances,
    proposed_sizes,
)

SKDIM = {
    ("gauss", 2): (1.9878, 2.0138),
    ("gauss", 5): (5.1390, 5.0562),
    ("gauss", 10): (9.7903, 9.4249),
    ("curved", 2): (1.9919, 2.0070),
    ("curved", 5): (5.1725, 4.9554),
    ("curved", 10): (9.3541, 8.9937),
}
"""TwoNN and MLE(K=20) of scikit-dimension 0.5.0 on the same points, which it needs numba for."""


def points(kind: str, d: int) -> torch.Tensor:
    """Return 5,000 points of dimension d: a Gaussian in 20 dimensions, or a curved sheet in 784.

    The sheet is rotated into the 50 dimensions that it lies in, which changes no distance.
    """
    drawn = np.random.default_rng(0)
    z = drawn.standard_normal((5000, d))
    if kind == "curved":
        inner = drawn.standard_normal((d, 50)) / np.sqrt(d)
        onto_784 = drawn.standard_normal((50, 784)) / 7
        x = np.tanh(z @ inner * 0.5) @ np.linalg.qr(onto_784.T).R.T
    else:
        x = z @ np.linalg.qr(drawn.standard_normal((20, d)))[0].T
    return torch.from_numpy(x)


@cache
def estimated(kind: str, d: int) -> Dimension:
    found = intrinsic_dimension(points(kind, d))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "d"),
    [
        pytest.param(*case, marks=pytest.mark.slow if n in (3, 5) else ())
        for n, case in enumerate(SKDIM)
    ],
)
def test_both_estimates_are_near_the_truth_and_those_of_scikit_dimension(kind: str, d: int) -> None:
    found = estimated(kind, d)
    for estimate, other in zip((found.twonn, found.mle), SKDIM[kind, d], strict=True):
        assert estimate.value == pytest.approx(d, rel=0.15)
        assert estimate.value == pytest.approx(other, rel=0.01)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.high - estimate.low < 0.2 * d
    assert found.disagreement < 0.05


def test_equal_and_nearly_equal_points_change_nothing() -> None:
    x = points("gauss", 5)[:1000]
    alone = intrinsic_dimension(x)
    doubled = intrinsic_dimension(torch.cat([x, x, x[:3]]))
    assert alone is not None
    assert doubled is not None
    assert doubled.num_points == 1000
    assert doubled.twonn == alone.twonn
    shifted = x.float() + 1e4
    assert intrinsic_dimension(torch.cat([shifted, shifted])) is not None
    near = intrinsic_dimension(torch.cat([x, x[:5] + 1e-13]))
    assert near is not None
    assert math.isfinite(near.twonn.value)
    assert near.mle.value == pytest.approx(alone.mle.value, rel=0.1)


def test_distances_are_those_of_all_pairs() -> None:
    x = points("gauss", 5)[:200]
    x[1] = x[0] + 1e-9
    slow = torch.stack([(x - row).square().sum(1).sqrt().sort().values[1:21] for row in x])
    torch.testing.assert_close(neighbour_distances(x, 20), slow, rtol=1e-6, atol=1e-15)


def test_few_points_and_values_that_are_not_finite_give_none() -> None:
    assert intrinsic_dimension(points("gauss", 2)[:49]) is None
    broken = points("gauss", 2)[:60]
    broken[:20] = torch.nan
    assert intrinsic_dimension(broken) is None
    assert intrinsic_dimension(torch.zeros(500, 3)) is None


def test_sizes_from_half_the_dimension_to_twice_it_are_proposed() -> None:
    assert proposed_sizes(estimated("gauss", 10)) == [5, 7, 10, 14, 21]


def test_a_data_set_proposes_sizes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    half = VALIDATION.removeprefix("data.validation=")
    assert main(["data", "dimension", half, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 5 < found["dimension_mle_low"] < found["dimension_mle"] < 16
    assert found["latent_sizes"][0] < found["dimension_mle"] < found["latent_sizes"][-1]
    assert main(["data", "dimension", half]) == 0
    lines = capsys.readouterr().out
    assert f"latent_dim={{grid: {found['latent_sizes']}}}" in lines
    assert main(["data", "dimension", "data.image_size=8"]) == 2
