"""Ranks ask each other rarely, at the same steps, and act together."""

import pytest
from helpers.agreeing import decisions
from helpers.ranks import run_ranks, single_world

from aae_dist.training.agreement import Agreement


def test_one_rank_acts_at_once() -> None:
    agreement = Agreement(single_world())
    assert not agreement.after(1, lambda: False, wants_save=lambda: False).stop
    assert agreement.after(2, lambda: True, wants_save=lambda: False).stop
    assert agreement.after(3, lambda: False, wants_save=lambda: True).save


@pytest.mark.distributed
def test_ranks_with_different_clocks_ask_at_the_same_steps_and_stop_together() -> None:
    first, second = run_ranks(decisions, 2, 60)
    assert first["asked"] == second["asked"]
    assert len(first["asked"]) < 60
    assert first["stopped_at"] == second["stopped_at"]
    assert first["stopped_at"] - 30 <= 12
