"""Small helpers for arrays."""

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(most: int, total: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers 0 to `total` - 1, ascending, spread evenly over them."""
    count = min(most, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
