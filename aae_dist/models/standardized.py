"""Networks that see features of mean 0 and variance 1, whatever the data's units."""

import torch
from torch import Tensor, nn


class Standardized(nn.Module):
    """A network that sees features of mean 0 and variance 1, whatever the data's units.

    `mean` and `std` are constants, saved with the weights.
    """

    def __init__(self, network: nn.Module, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean = nn.Parameter(torch.zeros(sample_shape), requires_grad=False)
        self.std = nn.Parameter(torch.ones(()), requires_grad=False)


class StandardizedEncoder(Standardized):
    """Standardizes the encoder's inputs."""

    def forward(self, x_BCHW: Tensor, *noise: Tensor) -> Tensor:
        """Map samples in the data's units to posterior parameters of shape (B, P)."""
        outputs_BP: Tensor = self.network((x_BCHW - self.mean) / self.std, *noise)
        return outputs_BP


class StandardizedDecoder(Standardized):
    """Brings the decoder's outputs to the data's units."""

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to samples in the data's units."""
        x_BCHW: Tensor = self.network(z_BZ)
        return x_BCHW * self.std + self.mean
