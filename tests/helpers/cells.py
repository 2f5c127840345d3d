"""Simulated cells: types of equal numbers whose genes are overdispersed counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def simulated_cells(
    num_cells: int, num_genes: int = 100, num_types: int = 6, seed: int = 0, contrast: float = 0.6
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return counts (cells, genes) and types (cells).

    Gamma-Poisson counts: gene profiles per type, totals that vary five-fold among cells, and a
    dispersion of 2.
    """
    draw = np.random.default_rng(seed)
    base = draw.gamma(0.8, 1.0, num_genes)
    profiles = base * np.exp(contrast * draw.normal(size=(num_types, num_genes)))
    profiles /= profiles.sum(1, keepdims=True)
    types = np.arange(num_cells) % num_types
    totals = 400 * np.exp(0.4 * draw.normal(size=(num_cells, 1)))
    rates = draw.gamma(2.0, totals * profiles[types] / 2.0)
    return draw.poisson(rates).astype(np.float32), types


def cells_in_batches(num_cells: int) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
    """Return counts of 100 genes, one of six types and one of two batches of each cell.

    Each batch multiplies every gene by a factor of its own.
    """
    draw = np.random.default_rng(0)
    profiles = draw.gamma(0.8, 1.0, 100) * np.exp(0.6 * draw.normal(size=(6, 100)))
    types, batches = np.arange(num_cells) % 6, draw.integers(0, 2, num_cells)
    rates = profiles[types] * np.exp(0.5 * draw.normal(size=(2, 100)))[batches]
    rates /= rates.sum(1, keepdims=True)
    totals = 400 * np.exp(0.4 * draw.normal(size=(num_cells, 1)))
    counts = draw.poisson(draw.gamma(2.0, totals * rates / 2.0)).astype(np.float32)
    return counts, types, batches


def knn_agreement(codes: NDArray[Any], labels: NDArray[Any], k: int = 15) -> float:
    """Return the mean share of a cell's k nearest neighbours that have its type."""
    squares = (codes**2).sum(1)
    distances = squares[:, None] + squares - 2 * codes @ codes.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, 1)[:, :k]
    return float((labels[nearest] == labels[:, None]).mean())


def log_pca(counts: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the first principal components of log(1 + counts at the median total)."""
    totals = counts.sum(1, keepdims=True)
    features = np.log1p(counts / totals * np.median(totals))
    features = features - features.mean(0)
    return features @ np.linalg.svd(features, full_matrices=False)[2][:size].T
