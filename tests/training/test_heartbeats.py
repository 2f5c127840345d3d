"""What heartbeats cost the process that serves them, and who is found to be gone."""

import time
from collections import Counter
from dataclasses import asdict

import pytest
import torch
import torch.distributed as dist

from aae_dist.distributed.world import World
from aae_dist.training import watchdog
from aae_dist.training.watchdog import Heartbeat, TcpHeartbeatStore, Watchdog

RANKS = 5


class CountingStore(dist.HashStore):
    """A store that counts what it is asked."""

    def __init__(self, extended: bool = True) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.extended = extended

    def has_extended_api(self) -> bool:
        return self.extended

    def set(self, key: str, value: str) -> None:
        self.asked["set"] += 1
        super().set(key, value)

    def get(self, key: str) -> bytes:
        self.asked["get"] += 1
        return super().get(key)

    def check(self, keys: list[str]) -> bool:
        self.asked["check"] += 1
        return super().check(keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.asked["multi_get"] += 1
        return [super(CountingStore, self).get(key) for key in keys]


def world(rank: int) -> World:
    return World(rank=rank, size=RANKS, local_rank=rank, device=torch.device("cpu"))


def beat(rank: int, step: int = 1) -> Heartbeat:
    return Heartbeat(rank=rank, step=step, stalled_seconds=0.0)


@pytest.mark.parametrize(("extended", "how"), [(True, {"multi_get": 1}), (False, {"get": 4})])
def test_all_others_are_read_at_once_where_the_store_can(
    extended: bool, how: dict[str, int]
) -> None:
    store = CountingStore(extended)
    stores = [TcpHeartbeatStore(world(rank), 60.0, store) for rank in range(RANKS)]
    assert stores[0].read(beat(0)) == {0: beat(0)}  # nobody has left one: nothing to wait for
    for rank, heartbeat_store in enumerate(stores):
        heartbeat_store.publish(beat(rank, step=10 + rank))
    stores[0].read(beat(0))
    store.asked.clear()
    found = stores[0].read(beat(0))
    assert {rank: each.step for rank, each in found.items()} == {0: 1, 1: 11, 2: 12, 3: 13, 4: 14}
    assert dict(store.asked) == how


def test_who_says_nothing_new_while_others_look_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    store = dist.HashStore()
    stores = [TcpHeartbeatStore(world(rank), 8.0, store) for rank in range(3)]
    for second in range(4):
        now = float(second)
        stores[1].publish(beat(1, step=second))
        if second == 0:
            stores[2].publish(beat(2))
        found = stores[0].read(beat(0))
    assert [found[rank].is_lost for rank in range(3)] == [False, False, True]
    assert "no heartbeat for 3 s" in str(found[2])
    assert asdict(found[1])["age_seconds"] == 0.0


@pytest.mark.run
def test_ranks_that_go_forward_read_nothing() -> None:
    store = CountingStore()
    heartbeat_store = TcpHeartbeatStore(world(0), 60.0, store)
    with Watchdog(world(0), 60.0, print, heartbeat_store, lambda code: None, tick=0.01) as dog:
        for step in range(20):
            dog.beat(step)
            time.sleep(0.02)
    assert store.asked["set"] >= 10
    assert set(store.asked) == {"set"}


def test_a_rank_that_is_stopped_before_its_first_tick_is_known() -> None:
    store = dist.HashStore()
    mine = TcpHeartbeatStore(world(1), 60.0, store)
    with Watchdog(world(1), 60.0, print, mine, lambda code: None):
        assert 1 in TcpHeartbeatStore(world(0), 60.0, store).read(beat(0))
