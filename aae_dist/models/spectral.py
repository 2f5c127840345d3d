"""Spectral normalisation without state: Miyato et al., arXiv 1802.05957.

torch's keeps the power iteration's vectors in buffers that change with every forward pass, so they
would depend on micro-batches, evaluations and throw-away passes. Here the iteration starts anew
from a fixed vector each time: the layer is a function of its weight alone, hence equal on all ranks
and after a resume. Twelve rounds reach 0.94 of the largest singular value of a fresh
1000 x 1000 layer (a test) and cost 4 % of the products of 256 rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDS = 12


def largest_singular_value(weight: Tensor) -> Tensor:
    """Return the largest singular value of a matrix, a scalar with gradient, from below."""
    matrix = weight.detach()
    # Any fixed vector does that no structured matrix is likely to be orthogonal to.
    v = torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=matrix.dtype).cos()
    for _ in range(ROUNDS):
        u = F.normalize(matrix @ v, dim=0)
        v = F.normalize(matrix.t() @ u, dim=0)
    return (u @ weight) @ v


class SpectralLinear(nn.Linear):
    """A linear layer whose weight is divided by its largest singular value."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in) to (B, out)."""
        return F.linear(input, self.weight / largest_singular_value(self.weight), self.bias)
