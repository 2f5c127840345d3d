"""Any single flipped bit changes a network's fingerprint, and the rank that drifted is named."""

import random

import pytest
import torch
from helpers.drifting import answer_after_a_flip
from helpers.ranks import run_ranks
from torch import nn

from aae_dist.distributed.world import differing, fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_flipped_bit_changes_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype)
    before, rng = fingerprint(network), random.Random(0)
    for parameter in network.parameters():
        octets = parameter.data.view(-1).view(torch.uint8)
        for _ in range(50):
            place, bit = rng.randrange(len(octets)), 1 << rng.randrange(8)
            octets[place] ^= bit
            assert fingerprint(network) != before
            octets[place] ^= bit
    assert fingerprint(network) == before


def test_it_does_not_depend_on_where_in_memory_a_parameter_lies() -> None:
    flat = torch.randn(40)
    network = nn.Linear(5, 3, bias=False)
    network.weight.data = flat[1:16].view(3, 5)
    other = nn.Linear(5, 3, bias=False)
    other.weight.data = flat[1:16].clone().view(3, 5)
    assert fingerprint(network) == fingerprint(other)


def test_the_rank_that_differs_from_most_is_named() -> None:
    assert differing("encoder", [4, 4, 4]) == ""
    assert differing("encoder", [4, 5, 4]) == (
        "the encoder of rank 1 differs from that of all others"
    )
    assert "between rank 0 and rank 1 (no majority" in differing("decoder", [4, 5])


@pytest.mark.distributed
def test_three_ranks_find_the_one_with_a_flipped_bit() -> None:
    answers = run_ranks(answer_after_a_flip, 3, 2)
    expected = (
        "after step 7 the ranks no longer hold the same numbers: "
        "the decoder of rank 2 differs from that of all others"
    )
    assert answers == [("", expected)] * 3
