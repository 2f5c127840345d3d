"""Random draws of a step: rows of the global batch, whoever draws them."""

import pytest
import torch
from torch import Tensor

from aae_dist.methods import method
from aae_dist.methods.method import Draws
from aae_dist.utils.tensors import keyed_generator

CPU = torch.device("cpu")


def draws(size: int) -> Draws:
    return Draws(seed=3, step=7, global_batch_size=size, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("size", [1, 5, 1023, 1024, 1025, 4096, 4500])
def test_any_split_of_the_rows_draws_the_same(size: int) -> None:
    whole = draws(size).normal("noise", range(size), 3)
    assert whole.shape == (size, 3)
    for num_ranks in (2, 3, 7):
        ends = [size * rank // num_ranks for rank in range(num_ranks + 1)]
        parts = [
            draws(size).normal("noise", range(start, end), 3)
            for start, end in zip(ends, ends[1:], strict=False)
            if start < end
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_up_to_1024_rows_are_one_draw() -> None:
    expected = torch.randn(1000, 3, generator=keyed_generator(3, "noise", 7))
    assert torch.equal(draws(1000).normal("noise", range(1000), 3), expected)


def test_blocks_are_independent() -> None:
    blocks = draws(8192).normal("noise", range(8192), 2).reshape(8, -1)
    correlations = torch.corrcoef(blocks) - torch.eye(8)
    assert correlations.abs().max() < 0.12  # 2,048 numbers each: five standard deviations
    assert torch.unique(blocks).numel() > 0.99 * blocks.numel()


def test_a_rank_draws_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def draw(num: int, source: torch.Generator) -> Tensor:
        asked.append(num)
        return torch.zeros(num, 1)

    rows = draws(16384).of_rows("prior", range(9000, 9256), draw)
    assert (len(rows), asked) == (256, [1024, 1024])
    asked.clear()
    draws(1500).of_rows("prior", range(1400, 1500), draw)
    assert asked == [1500 - method._ROWS_AT_ONCE]
