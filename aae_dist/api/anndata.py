"""AnnData objects, the form of single-cell data, as samples; the package itself is not needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aae_dist.api.data import as_arrays, is_sparse
from aae_dist.data.arrays import Arrays
from aae_dist.errors import DataError


def from_anndata(
    adata: Any, *, layer: str | None = None, label: str | Sequence[str] | None = None
) -> Arrays:
    """Return the observations of an AnnData object as samples for `aae_dist.train`.

    Args:
        adata: an `anndata.AnnData` in memory, (N, D). A sparse matrix stays sparse: only rows that
            are read become dense.
        layer: the matrix of `adata.layers` to take, such as counts; by default `adata.X`.
        label: a column of `adata.obs`, such as cell types for pictures and scores, or the batch
            for codes that are given it (docs/counts.md). Text and categories are numbered, in the
            order of the categories; integers are labels as they are; missing values are -1. Of
            several columns the combinations are numbered, as `numpy.ravel_multi_index` does, for
            codes with a given part per column.

    Returns:
        Vectors, float32 (N, 1, 1, D), and labels, int64 (N), with the names of the classes.

    Raises:
        DataError: in one line, what is not there or not as it should be.
    """
    if layer is not None and layer not in adata.layers:
        raise DataError(f"layer: {layer!r:.80} is no layer; {_has(adata.layers.keys())}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError(f"data: the AnnData has no X; name a layer; {_has(adata.layers.keys())}")
    if getattr(adata, "isbacked", False):
        raise DataError("data: the AnnData is on disk; give adata.to_memory(), or write shards")
    if not is_sparse(matrix):
        matrix = np.asarray(matrix)
        if not np.issubdtype(matrix.dtype, np.number):
            raise DataError(f"data: X should be numbers (got {matrix.dtype})")
        matrix = matrix.astype(np.float32, copy=False)
    samples = as_arrays(matrix)
    if label is None:
        return samples
    names = [label] if isinstance(label, str) else list(label)
    for name in names:
        if name not in adata.obs:
            raise DataError(f"label: {name!r:.80} is no column of obs; {_has(adata.obs.columns)}")
    labels, classes = _combined([_labels(adata.obs[name], name) for name in names])
    return Arrays(samples.images, labels, classes)


def is_anndata(data: Any) -> bool:
    """Return whether this is an AnnData object."""
    return all(hasattr(data, name) for name in ("X", "layers", "obs", "var"))


def _labels(column: Any, name: str) -> tuple[np.typing.NDArray[np.int64], dict[str, int]]:
    if column.dtype.kind in "iu":
        labels = column.to_numpy().astype(np.int64)
        if labels.min(initial=0) < -1:
            raise DataError(f"label: {name!r:.80} should be 0 or more, -1 for none")
        return labels, {}
    if column.dtype.kind == "f":
        raise DataError(
            f"label: {name!r:.80} holds {column.dtype}, no classes; give integers or text"
        )
    found = column.astype("category").cat
    classes = {str(category): number for number, category in enumerate(found.categories)}
    return found.codes.to_numpy().astype(np.int64), classes


Labels = tuple[np.typing.NDArray[np.int64], dict[str, int]]


def _combined(columns: Sequence[Labels]) -> Labels:
    """Return labels of the combinations of columns, -1 where one is missing, and their names."""
    (labels, classes), *others = columns
    for more, names in others:
        size = len(names) or int(more.max(initial=0)) + 1
        is_known = (labels >= 0) & (more >= 0)
        labels = np.where(is_known, labels * size + more, -1)
        classes = {
            f"{first}, {second}": a * size + b
            for first, a in classes.items()
            for second, b in (names or {str(n): n for n in range(size)}).items()
        }
    return labels, classes


def _has(names: Any) -> str:
    listed = ", ".join(map(str, list(names)[:10]))
    return f"it has {listed or 'none'}"
