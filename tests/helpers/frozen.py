"""An encoder of a user's own whose trunk, with a buffer, was trained before and stays as it is."""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenTrunk(nn.Module):
    def __init__(self, sample_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = sample_shape
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 9), nn.Tanh())
        self.trunk.requires_grad_(False)
        self.trunk.register_buffer("mean", torch.tensor(0.5))
        self.head = nn.Linear(9, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x - self.trunk.mean))
        return out


FROZEN: dict[str, Any] = {"encoder": {"path": "helpers.frozen:FrozenTrunk"}}
