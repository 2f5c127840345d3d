"""Ranks ask each other rarely, at the same steps, and act together."""

import pytest
from helpers.agreeing import decisions
from helpers.ranks import run_ranks, single_world

from aae_dist.training.health import StopConsensus


def test_one_rank_acts_at_once() -> None:
    agreement = StopConsensus(single_world(), 0)
    assert not agreement.after(1, lambda: False, wants_save=lambda: False).stop
    assert agreement.after(2, lambda: True, wants_save=lambda: False).stop
    assert agreement.after(3, lambda: False, wants_save=lambda: True).save


@pytest.mark.distributed
@pytest.mark.parametrize("first", [pytest.param(0, id="new"), pytest.param(10_000, id="resumed")])
def test_ranks_with_different_clocks_ask_at_the_same_steps_and_stop_together(first: int) -> None:
    one, other = run_ranks(decisions, 2, first, 60)
    assert one["asked"] == other["asked"]
    assert len(one["asked"]) < 60
    assert one["stopped_at"] == other["stopped_at"]
    assert 30 <= one["stopped_at"] - first <= 42
