"""Ways through the latent space: between two codes, along one dimension, over a plane."""

from typing import Literal

import torch
from torch import Tensor

Path = Literal["linear", "spherical"]


def between(start_NZ: Tensor, end_NZ: Tensor, num_steps: int, path: Path) -> Tensor:
    """Return codes on the way from each start to its end, shape (N, num_steps, Z), ends included.

    Args:
        start_NZ: codes, floats (N, Z).
        end_NZ: codes, floats (N, Z).
        num_steps: codes on each way, at least 2.
        path: linear, or spherical: along the great circle, the length growing evenly. A Gaussian
            in many dimensions lies in a shell, which a straight line leaves (White 2016,
            arXiv 1609.04468).
    """
    share_S1 = torch.linspace(0, 1, num_steps, dtype=start_NZ.dtype)[:, None]
    start_N1Z, end_N1Z = start_NZ[:, None], end_NZ[:, None]
    if path == "linear":
        return start_N1Z + share_S1 * (end_N1Z - start_N1Z)
    lengths = [codes.norm(dim=-1, keepdim=True) for codes in (start_N1Z, end_N1Z)]
    unit_a, unit_b = start_N1Z / lengths[0].clamp_min(1e-12), end_N1Z / lengths[1].clamp_min(1e-12)
    angle = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    # Parallel codes have no plane to turn in, and opposite ones no single one: go straight.
    flat = angle.sin().abs() < 1e-6
    sin = torch.where(flat, torch.ones_like(angle), angle.sin())
    turned = (((1 - share_S1) * angle).sin() * unit_a + (share_S1 * angle).sin() * unit_b) / sin
    straight = (1 - share_S1) * unit_a + share_S1 * unit_b
    length = (1 - share_S1) * lengths[0] + share_S1 * lengths[1]
    codes_NSZ: Tensor = torch.where(flat, straight, turned) * length
    return codes_NSZ


def traversal(code_Z: Tensor, low_Z: Tensor, high_Z: Tensor, num_steps: int) -> Tensor:
    """Return copies of a code with one dimension at a time moved from low to high.

    Returns:
        Codes of shape (Z, num_steps, Z): row i moves dimension i.
    """
    size = len(code_Z)
    share_S = torch.linspace(0, 1, num_steps, dtype=code_Z.dtype)
    codes = code_Z.expand(size, num_steps, size).clone()
    every = torch.arange(size)
    codes[every, :, every] = low_Z[:, None] + (high_Z - low_Z)[:, None] * share_S
    return codes


def plane(corners_4Z: Tensor, num_steps: int, path: Path) -> Tensor:
    """Return codes over the patch between four corners, shape (num_steps, num_steps, Z).

    Args:
        corners_4Z: top left, top right, bottom left, bottom right.
        num_steps: rows and columns.
        path: as for `between`.
    """
    left_1SZ = between(corners_4Z[0:1], corners_4Z[2:3], num_steps, path)
    right_1SZ = between(corners_4Z[1:2], corners_4Z[3:4], num_steps, path)
    return between(left_1SZ[0], right_1SZ[0], num_steps, path)
