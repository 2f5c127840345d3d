"""Intrinsic dimension of data and of codes: how many numbers tell the points apart, locally.

Two estimators that look at distances to nearest neighbours: TwoNN at the first two, MLE at the
first twenty. Both assume a locally constant density; where they disagree, noise or curvature makes
the answer depend on the scale, and the truth is not known better than their distance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aae_dist.config.sections.run import Data
from aae_dist.data.dataset import Dataset, open_dataset
from aae_dist.errors import DataError
from aae_dist.evaluation.linear import CHUNK, NUM_SHARDS, good_rows, spread_numbers
from aae_dist.utils import arrays, text

MAX_POINTS = 5000
"""Points that are compared; of more some that are spread over all."""
MAX_NUMBERS = 1 << 25
"""Numbers in all points of a data set: 5,000 points of up to 6,700 numbers each, or fewer."""
MIN_POINTS = 50
"""Different points below which nothing is estimated."""
NUM_NEIGHBOURS = 20
"""Nearest neighbours that MLE looks at."""
DISCARDED = 0.1
"""Share of the largest ratios that TwoNN leaves out, as its authors do."""
NUM_RESAMPLES = 200
BLOCK_ROWS = 512
WIDE = 0.2
"""Disagreement of the estimators from which a wider range of sizes is advised."""
SPARE = 8
"""Neighbours found in excess by products of rows, before exact distances decide."""
TOO_CLOSE = 1e-8
"""Squared distance over squared length below which products of rows lose half the digits."""


@dataclass(frozen=True)
class Estimate:
    """An intrinsic dimension and its 95 % interval, from resampling the points."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Dimension:
    """Both estimates of one set of points."""

    twonn: Estimate
    mle: Estimate
    num_points: int
    """Different points that were compared."""

    @property
    def disagreement(self) -> float:
        """Distance of the two estimates, as a fraction of their mean."""
        mean = (self.twonn.value + self.mle.value) / 2
        return abs(self.twonn.value - self.mle.value) / mean

    def metrics(self, of: str) -> dict[str, float]:
        """Return the estimates as metrics of `of`: codes or data."""
        found = {}
        for name, estimate in (("twonn", self.twonn), ("mle", self.mle)):
            found[f"{of}/dimension_{name}"] = estimate.value
            found[f"{of}/dimension_{name}_low"] = estimate.low
            found[f"{of}/dimension_{name}_high"] = estimate.high
        return found


def data_dimension(
    dataset: Dataset, numbers: np.typing.NDArray[np.int64], seed: int = 0
) -> Dimension | None:
    """Return the intrinsic dimension of the samples `numbers` of a data set, as pixels in [0, 1].

    At most 5,000, spread over all, are read, fewer where they have more than 6,700 numbers each.
    """
    most = min(MAX_POINTS, MAX_NUMBERS // math.prod(dataset.image_shape))
    chosen = numbers[arrays.stratified(most, len(numbers))]
    parts = [good_rows(dataset, chosen[at : at + CHUNK]) for at in range(0, len(chosen), CHUNK)]
    return intrinsic_dimension(torch.cat(parts), seed) if parts else None


def intrinsic_dimension(points_nD: torch.Tensor, seed: int = 0) -> Dimension | None:
    """Return the intrinsic dimension of points, [n, D] of any real type, computed in float64.

    Equal points count once: their distance is zero and says nothing. At most 5,000 points, spread
    over all, are compared. None for fewer than 50 different finite ones. `seed` is that of the
    resampling; the result does not depend on the number of ranks.
    """
    if len(points_nD) > MAX_POINTS:
        points_nD = points_nD[torch.from_numpy(arrays.stratified(MAX_POINTS, len(points_nD)))]
    rows = points_nD.double().cpu()
    rows = torch.unique(rows[rows.isfinite().all(1)], dim=0)
    if len(rows) < MIN_POINTS:
        return None
    distances_nK = neighbour_distances(rows, NUM_NEIGHBOURS).numpy()
    draws = np.random.default_rng(seed).integers(len(rows), size=(NUM_RESAMPLES, len(rows)))
    ratios = np.sort(distances_nK[:, 1] / distances_nK[:, 0])
    logs = np.log(distances_nK[:, -1:] / distances_nK[:, :-1]).sum(1)
    # Sorted draws of a sorted sample are a sorted resample.
    resampled = [(twonn(ratios[np.sort(draw)]), mle(logs[draw])) for draw in draws]
    ends = np.percentile(np.array(resampled), (2.5, 97.5), axis=0)
    return Dimension(
        twonn=Estimate(twonn(ratios), *map(float, ends[:, 0])),
        mle=Estimate(mle(logs), *map(float, ends[:, 1])),
        num_points=len(rows),
    )


def neighbour_distances(rows_nD: torch.Tensor, count: int) -> torch.Tensor:
    """Return each row's distances to its nearest other rows, ascending, float64 [n, count].

    They come from products of rows. Where these lose digits, because a row is very close to
    another one, they are computed again from differences.
    """
    centred_nD = rows_nD - rows_nD.mean(0)
    squares_n = centred_nD.square().sum(1)
    wanted = min(count + SPARE, len(rows_nD) - 1)
    found = []
    for start in range(0, len(rows_nD), BLOCK_ROWS):
        block, block_squares = (x[start : start + BLOCK_ROWS] for x in (centred_nD, squares_n))
        squared = block_squares[:, None] + squares_n - 2 * block @ centred_nD.T
        own = torch.arange(len(block))
        squared[own, own + start] = math.inf
        nearest = squared.topk(wanted, largest=False)
        values = nearest.values
        for row in (values[:, 0] < TOO_CLOSE * block_squares).nonzero().flatten():
            values[row] = (centred_nD[nearest.indices[row]] - block[row]).square().sum(1)
        found.append(values.sort(1).values[:, :count].sqrt())
    return torch.cat(found)


def twonn(ratios_n: np.typing.NDArray[np.float64]) -> float:
    """Return the dimension from the ratios of the second to the first distance, ascending.

    TwoNN: Facco, d'Errico, Rodriguez and Laio, "Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information" (2017): the slope through the origin of -log(1 - F(mu)) over
    log(mu), without the largest tenth.
    """
    count = len(ratios_n)
    kept = int(count * (1 - DISCARDED))
    x = np.log(ratios_n[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / count)
    return float(x @ y / (x @ x))


def mle(sums_n: np.typing.NDArray[np.float64]) -> float:
    """Return the dimension from each point's sum over j < k of log(T_k / T_j), k neighbours.

    Levina and Bickel, "Maximum likelihood estimation of intrinsic dimension" (2004), equation 8,
    with the points' inverses averaged, as MacKay and Ghahramani correct it (2005).
    """
    return float((NUM_NEIGHBOURS - 1) / sums_n.mean())


def dimension_of(
    patterns: Sequence[str], settings: Data, show: Callable[..., Any] = text.progress
) -> Dimension:
    """Return the intrinsic dimension of shards, from samples of at most 16 of them.

    Raises:
        DataError: the shards cannot be read, or have too few different samples.
    """
    dataset = open_dataset(patterns, settings, show=show)
    found = data_dimension(dataset, spread_numbers(dataset, MAX_POINTS, NUM_SHARDS))
    if found is None:
        raise DataError(
            f"{', '.join(patterns)}: fewer than {MIN_POINTS} different samples can be read, too "
            "few to estimate a dimension; give more"
        )
    return found


def report(found: Dimension) -> str:
    """Return the estimates and the sizes to try, as lines for a person."""
    lines = [
        f"{name:<6} {e.value:.1f} (95 % interval {e.low:.1f} to {e.high:.1f}), {how}"
        for name, e, how in (
            ("TwoNN", found.twonn, "from the first two neighbours of each sample"),
            ("MLE", found.mle, f"from the first {NUM_NEIGHBOURS}"),
        )
    ]
    advice = "; the answer depends on the scale, so try a wider range" * (found.disagreement > WIDE)
    sizes = proposed_sizes(found)
    return "\n".join(
        [
            f"intrinsic dimension of {found.num_points:,} different samples:",
            *lines,
            f"They differ by {found.disagreement:.0%}{advice}.",
            "Latent sizes to try, from half the dimension to twice the dimension and one:",
            f"  aae-dist tune ... 'sweep.space.model.latent_dim={{grid: {sizes}}}'",
        ]
    )


def document(found: Dimension) -> dict[str, Any]:
    """Return the estimates and the sizes to try as JSON."""
    values = {name.rpartition("/")[2]: v for name, v in found.metrics("data").items()}
    return {
        **values,
        "disagreement": found.disagreement,
        "num_points": found.num_points,
        "latent_sizes": proposed_sizes(found),
    }


def proposed_sizes(found: Dimension, most: int = 7) -> list[int]:
    """Return latent sizes to try: from half the dimension to twice the dimension and one.

    Below the dimension codes must lose something, and by Whitney's theorem 2d + 1 numbers embed any
    smooth manifold of d dimensions; the sizes between are spaced equally in their logarithm.
    """
    estimates = (found.twonn.value, found.mle.value)
    first, last = max(1.0, min(estimates) / 2), 2 * max(estimates) + 1
    count = min(most, 1 + max(2, round(math.log(last / first, 1.5))))
    return sorted({round(float(size)) for size in np.geomspace(first, last, count)})
