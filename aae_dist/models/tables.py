"""Networks for tables whose columns are real numbers, counts and categories.

Shapes: B samples, D columns, as vectors (B, 1, 1, D), Z latent_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_COUNT, LEAST_SHARE = 0.1, 0.01
"""Added to means of counts and of categories where decoders start from."""
LARGEST_LOG = 20.0
"""Logarithm of the largest expected count."""


class TableEncoder(nn.Module):
    """Columns -> posterior parameters: counts as log(1 + count), all others as they are."""

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        """Read the columns by a network.

        Args:
            network: maps transformed columns (B, 1, 1, D), and noise, to outputs (B, P).
            sizes: the numbers of real columns, of counts, and of each category's values.
        """
        super().__init__()
        self.network, self.sizes = network, tuple(sizes)

    def forward(self, x_B11D: Tensor, *noise: Tensor) -> Tensor:
        """Map samples (B, 1, 1, D) to posterior parameters (B, P); `noise` goes to the network."""
        real, counts, *categories = x_B11D.split(list(self.sizes), -1)
        outputs_BP: Tensor = self.network(
            torch.cat([real, counts.log1p(), *categories], -1), *noise
        )
        return outputs_BP


class TableDecoder(nn.Module):
    """z -> expected values: means of real columns and counts, probabilities of categories.

    Training starts from the means of the data, constants that are saved with the weights.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        """Put the parts' own functions behind a network.

        Args:
            network: maps codes (B, Z) to outputs (B, 1, 1, D).
            sizes: the numbers of real columns, of counts, and of each category's values.
        """
        super().__init__()
        self.network, self.sizes = network, tuple(sizes)
        self.offset = nn.Parameter(torch.zeros(sum(sizes)), requires_grad=False)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to expected values of shape (B, 1, 1, D)."""
        outputs = self.network(z_BZ) + self.offset
        real, counts, *categories = outputs.split(list(self.sizes), -1)
        rates = counts.clamp(max=LARGEST_LOG).exp()
        return torch.cat([real, rates, *(F.softmax(c, -1) for c in categories)], -1)

    @torch.no_grad()
    def set_profile(self, mean_11D: Tensor) -> None:
        """Set where training starts from the mean of the data."""
        real, counts, *categories = mean_11D.flatten().split(list(self.sizes))
        shares = ((share + LEAST_SHARE).log() for share in categories)
        self.offset.copy_(torch.cat([real, (counts + LEAST_COUNT).log(), *shares]))
