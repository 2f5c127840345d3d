"""Scores of samples: how near decoded prior samples, and reconstructions, are to real samples.

Fréchet and kernel distance, precision, recall, density and coverage of two sets, by features.
Shapes: n real samples, m generated ones, F features. All is computed in float64 on the CPU, in
blocks of rows. Values of other features, or of other numbers of samples, are not comparable.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.config.metric_names import FEATURES, NUM_FEATURED
from aae_dist.evaluation.features import Features

NUM_NEIGHBOURS = 5
"""Neighbours that reach the edge of a sample's neighbourhood, as in Naeem et al. (2020)."""
BLOCK_ROWS = 512
MIN_SAMPLES = NUM_NEIGHBOURS + 1


@dataclass(frozen=True)
class FeatureSet:
    """The features of one set of samples, with what comparisons need of it alone."""

    rows: Tensor
    """Float64 [n, F]."""
    mean: Tensor
    """Float64 [F]."""
    root: Tensor
    """Float64 [min(n, F), F]: its product with itself, R^T R, is the covariance."""
    kernel: float
    """Mean cubic kernel over all pairs of different rows."""
    squared_radii: Tensor | None
    """Float64 [n]: squared distance of each row to its fifth nearest other one; None if unused."""

    @classmethod
    def from_rows(cls, features_nF: Tensor, with_radii: bool = True) -> "FeatureSet":
        """Describe n >= 6 rows of features; radii serve precision, recall, density, coverage."""
        rows = features_nF.detach().cpu().double()
        mean = rows.mean(0)
        # The covariance itself would have the squares of the singular values: half the digits.
        root = torch.linalg.qr(rows - mean, mode="r").R / math.sqrt(len(rows) - 1)
        total, radii = 0.0, []
        squares = rows.square().sum(1)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            # All rows for distances; for the sum alone, each pair once.
            first = 0 if with_radii else start
            products = block @ rows[first:].T
            here = torch.arange(len(block))
            own = products[here, start - first + here]
            twice = 1.0 if with_radii else 2.0
            total += twice * _kernel_sum(products, rows.shape[1])
            if not with_radii:
                total -= _kernel_sum(products[:, : len(block)], rows.shape[1])
            total -= _kernel_sum(own, rows.shape[1])
            if with_radii:
                distances = _squared_distances(products, squares[start:][: len(block)], squares)
                distances[here, start + here] = math.inf
                radii.append(distances.topk(NUM_NEIGHBOURS, largest=False).values[:, -1])
        pairs = len(rows) * (len(rows) - 1)
        return cls(rows, mean, root, total / pairs, torch.cat(radii) if radii else None)


def frechet_distance(real: FeatureSet, other: FeatureSet) -> float:
    """Return the squared Fréchet distance of the Gaussians with the sets' means and covariances.

    Heusel et al., arXiv 1706.08500, equation 6, for any features.
    """
    # tr (A B)^(1/2), with A = R^T R and B = S^T S, is the sum of the singular values of R S^T.
    shared = torch.linalg.svdvals(real.root @ other.root.T).sum()
    spread = real.root.square().sum() + other.root.square().sum()
    return float((real.mean - other.mean).square().sum() + spread - 2 * shared)


def pairwise_scores(real: FeatureSet, other: FeatureSet) -> dict[str, float]:
    """Return the kernel distance and, of sets with radii, precision, recall, density and coverage.

    `kernel_distance` is the squared maximum mean discrepancy by the kernel (x y / F + 1)^3, of
    Binkowski et al., arXiv 1801.01401, section 3, unbiased and over all pairs instead of random
    subsets; by chance it is below 0 where the sets match. The others are those of Kynkaanniemi et
    al., arXiv 1904.06991, equation 2, and Naeem et al., arXiv 2002.09797, equations 5 and 6:
    whether samples lie within the distance of a sample's fifth nearest neighbour of its own set.
    That distance itself is within, so equal sets have precision, recall and coverage 1.
    """
    squares, across, precise, within = real.rows.square().sum(1), 0.0, 0.0, 0.0
    recalled = torch.zeros(len(real.rows), dtype=torch.bool)
    covered = torch.zeros_like(recalled)
    radii, own_radii = real.squared_radii, other.squared_radii
    for start in range(0, len(other.rows), BLOCK_ROWS):
        block = other.rows[start : start + BLOCK_ROWS]
        products = block @ real.rows.T
        across += _kernel_sum(products, real.rows.shape[1])
        if radii is None or own_radii is None:
            continue
        distances = _squared_distances(products, block.square().sum(1), squares)
        recalled |= (distances <= own_radii[start : start + len(block), None]).any(0)
        near_real = distances <= radii
        precise += float(near_real.any(1).sum())
        covered |= near_real.any(0)
        within += float(near_real.sum())
    pairs = len(real.rows) * len(other.rows)
    found = {"kernel_distance": real.kernel + other.kernel - 2 * across / pairs}
    if radii is None or own_radii is None:
        return found
    return found | {
        "precision": precise / len(other.rows),
        "recall": float(recalled.double().mean()),
        "density": within / (NUM_NEIGHBOURS * len(other.rows)),
        "coverage": float(covered.double().mean()),
    }


def _kernel_sum(products: Tensor, num_features: int) -> float:
    """Return the sum over pairs of (x y / F + 1)^3, from their products."""
    squares = products.square()
    third, second = torch.dot(squares.flatten(), products.flatten()), squares.sum()
    sums = (
        third / num_features**3 + 3 * second / num_features**2 + 3 * products.sum() / num_features
    )
    return float(sums) + products.numel()


def _squared_distances(products_bn: Tensor, squares_b: Tensor, squares_n: Tensor) -> Tensor:
    """Return |x|^2 + |y|^2 - 2 x y, in place of the products."""
    distances = products_bn.mul_(-2).add_(squares_b[:, None]).add_(squares_n)
    return distances.clamp_min_(0)


class SampleScores:
    """Scores samples against one validation set, whose own features are computed once."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._real: Tensor | None = None
        self._known: dict[bytes, tuple[FeatureSet, dict[str, float]]] = {}
        self._is_first = True

    def rows(
        self, images_BCHW: Tensor, reconstructions_BCHW: Tensor, decoded_BCHW: Tensor
    ) -> Tensor:
        """Return the features of a chunk side by side, float32 (B, k F) on the CPU.

        Of reconstructions and of decoded prior samples; in the first evaluation also those of the
        images, floats in [0, 1] as the others.
        """
        sets = [reconstructions_BCHW, decoded_BCHW, *([images_BCHW] if self._is_first else [])]
        with torch.no_grad():
            return torch.cat([self.features.of(x.float()).float().cpu() for x in sets], 1)

    def end_of_rows(self) -> None:
        """Note, on every rank, that the features of the images are known from now on."""
        self._is_first = False

    def measure(self, table: Tensor, readable_n: Tensor) -> dict[str, float]:
        """Return the metrics, on rank 0, of the gathered rows of all n samples.

        Empty for fewer than 12 readable samples, or where features are not finite.
        """
        if self._real is None:
            table, self._real = table.tensor_split([2 * table.shape[1] // 3], 1)
        sets = [part[readable_n] for part in (*table.chunk(2, 1), self._real)]
        if len(sets[0]) < 2 * MIN_SAMPLES or not all(bool(x.isfinite().all()) for x in sets):
            return {}
        key = readable_n.numpy().tobytes()
        if key not in self._known:
            self._known = {key: described(sets[2])}
        real, floor = self._known[key]
        rebuilt, drawn = (
            FeatureSet.from_rows(sets[0], with_radii=False),
            FeatureSet.from_rows(sets[1]),
        )
        about = {NUM_FEATURED: float(len(sets[0])), FEATURES: self.features.number}
        return about | floor | scores(real, rebuilt, drawn)


def described(real_nF: Tensor) -> tuple[FeatureSet, dict[str, float]]:
    """Return the features of real samples, and the distances of one half of them to the other.

    These are what perfect samples would reach, or somewhat more: a half has fewer samples, and the
    Fréchet distance of equal distributions falls with their number.
    """
    halves = [FeatureSet.from_rows(real_nF[start::2], with_radii=False) for start in (0, 1)]
    floor = {
        "samples/frechet_floor": frechet_distance(*halves),
        "samples/kernel_floor": pairwise_scores(*halves)["kernel_distance"],
    }
    return FeatureSet.from_rows(real_nF), floor


def scores(real: FeatureSet, rebuilt: FeatureSet, drawn: FeatureSet) -> dict[str, float]:
    """Return the metrics of reconstructions, without radii, and of decoded prior samples."""
    found = {}
    for name, other in (("samples", drawn), ("reconstruction", rebuilt)):
        found[f"{name}/frechet_distance"] = frechet_distance(real, other)
        found |= {f"{name}/{each}": value for each, value in pairwise_scores(real, other).items()}
    return found
