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
