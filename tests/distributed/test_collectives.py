"""Ranks that decide wait for one that works alone, and none of them for its device."""

import weakref

import pytest
import torch.distributed as dist
from helpers.deciding import groups, waits_for_slow_ranks
from helpers.ranks import run_ranks, single_world

from aae_dist.distributed.world import broadcast_json, control_group, gather_json

pytestmark = pytest.mark.distributed


def test_who_decides_may_take_longer_than_a_gradient() -> None:
    ranks = [{"rank": 0}, {"rank": 1}]
    expected = ["of rank 0", "own", [1, 2], ranks, True]
    assert run_ranks(waits_for_slow_ranks, 2) == [expected] * 2


def test_one_patient_group_serves_all_that_decide() -> None:
    expected = {"again": True, "seconds": True, "more": 0, "apart": True}
    assert run_ranks(groups, 2) == [expected] * 2


def test_it_ends_with_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    found = []
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        found.append(weakref.ref(control_group()))
        dist.destroy_process_group()
    assert [group() for group in found] == [None, None]


def test_a_rank_that_is_alone_needs_no_group() -> None:
    assert broadcast_json({"a": 1}, single_world()) == {"a": 1}
    assert gather_json({"a": 1}, single_world()) == [{"a": 1}]
