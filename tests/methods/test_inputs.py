"""Random draws of a step: rows of the global batch, whoever draws them."""

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import build, global_batch, tiny_config
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


def test_the_encoder_reads_noise_and_the_target_stays_clean() -> None:
    method_section = {"kind": "adversarial", "image_noise": 0.5}
    config = tiny_config(method=method_section, train={"micro_batch_size": 8})
    _, adversarial, inputs = build(config, single_world())
    read = []
    adversarial.modules.encoder.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    images, valid = global_batch(config, 0)
    parts = inputs.parts(images, valid, len(images), 0)
    targets = torch.cat([part.x_BCHW for part in parts]).clone()
    adversarial.step(parts)
    assert torch.equal(torch.cat([part.x_BCHW for part in parts]), targets)
    noise = torch.cat(read[: len(parts)]) - targets
    assert noise.std().item() == pytest.approx(0.5, rel=0.1)
    assert abs(noise.mean().item()) < 0.05
    # Every pass over a row reads the same noise, and no other row's.
    assert all(any(torch.equal(x, y) for y in read[: len(parts)]) for x in read)
    assert torch.unique(noise).numel() > 0.99 * noise.numel()
