"""A prior that is a set of vectors: a data set's, or the codes of another run."""

import torch
from torch import Tensor

from aae_dist.priors.prior import Prior


class EmpiricalPrior(Prior):
    """Vectors drawn with replacement from a table, each equally likely."""

    def __init__(self, vectors_MZ: Tensor) -> None:
        """Take the table: float32, M >= 1 vectors of Z numbers."""
        super().__init__(vectors_MZ.shape[1])
        self.vectors_MZ = vectors_MZ

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        return self.vectors_MZ[
            torch.randint(len(self.vectors_MZ), (num_samples,), generator=generator)
        ]
