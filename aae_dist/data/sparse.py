"""Rows of a sparse matrix as samples: dense are only those that are read."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SparseRows:
    """A matrix of SciPy in CSR form, as an array of vectors (N, 1, 1, D), float32.

    It has what of NumPy's arrays training uses. A row takes 8 bytes per number that is not zero.
    """

    dtype = np.dtype(np.float32)
    itemsize, ndim = 4, 4
    shape: tuple[int, int, int, int]

    def __init__(self, matrix: Any) -> None:
        """Copy `matrix`, (N, D), into one form, so that equal ones have one hash."""
        rows = matrix.tocsr().astype(np.float32)
        if rows is matrix:
            rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
        self.rows = rows
        self.shape = (rows.shape[0], 1, 1, rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: int | slice | NDArray[Any]) -> Any:
        """Return dense samples; those of a mask or of numbers stay sparse."""
        if isinstance(chosen, np.ndarray):
            return SparseRows(self.rows[chosen])
        if isinstance(chosen, slice):
            return self._dense(self.rows[chosen])
        return self._dense(self.rows[[chosen]])[0]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[number] for number in range(len(self)))

    def take(self, indices: NDArray[np.int64], axis: int = 0) -> NDArray[np.float32]:
        """Return dense samples of these numbers, float32 (n, 1, 1, D)."""
        assert axis == 0
        return self._dense(self.rows[indices])

    def digest(self) -> bytes:
        """Return the SHA-256 of all numbers and of where they are."""
        digest = sha256(str(self.shape).encode())
        for part, kind in (("data", "<f4"), ("indices", "<i8"), ("indptr", "<i8")):
            digest.update(np.ascontiguousarray(getattr(self.rows, part), kind).data)
        return digest.digest()

    @staticmethod
    def _dense(rows: Any) -> NDArray[np.float32]:
        dense: NDArray[np.float32] = rows.toarray()
        return dense[:, None, None]
