"""A rank that hangs is named, its stacks are printed, and it ends; a slow one is left alone."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from aae_dist.distributed.world import World
from aae_dist.training.watchdog import (
    EXIT_CODE,
    Heartbeat,
    NullHeartbeatStore,
    Watchdog,
    find_straggler,
    is_in_section,
)

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Watched:
    """A watchdog of quick habits that notes its lines and its verdict."""

    def __init__(self, limit: float = 0.3) -> None:
        self.lines: list[str] = []
        self.ended = threading.Event()
        self.dog = Watchdog(
            ALONE,
            limit,
            self.lines.append,
            NullHeartbeatStore(),
            lambda code: self.ended.set(),
            tick=0.02,
        )


def test_a_rank_without_progress_is_told_of_and_ended(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    with watched.dog as dog:
        dog.beat(17)
        assert watched.ended.wait(10)
    assert "no progress for 0 s after step 17" in watched.lines[0]
    assert "test_watchdog.py" in watched.lines[0]
    assert "exits, to restart from the newest checkpoint" in watched.lines[-1]
    assert "most recent call first" in capfd.readouterr().err


def test_steps_and_declared_sections_keep_it_quiet() -> None:
    watched = Watched()
    with watched.dog as dog:
        time.sleep(0.5)  # the start is a declared section
        for step in range(5):
            dog.beat(step)
            time.sleep(0.1)
        with dog.section("evaluating", seconds=30):
            time.sleep(0.6)
        dog.beat(6)
    assert watched.lines == []


def test_a_section_has_an_end_too() -> None:
    watched = Watched()
    with watched.dog as dog:
        dog.beat(1)
        with dog.section("saving", seconds=0.1):
            assert watched.ended.wait(10)
    assert "saving takes too long" in watched.lines[-1]


def test_a_section_that_shows_signs_of_life_goes_on_until_it_shows_none() -> None:
    watched = Watched(limit=0.2)
    with watched.dog as dog:
        dog.beat(1)
        with dog.section("counting", seconds=0.4):
            for _ in range(12):
                time.sleep(0.1)
                dog.alive()
            assert not watched.ended.is_set()
            assert watched.ended.wait(10)
    assert "counting takes too long" in watched.lines[-1]


def test_time_in_a_section_does_not_count_for_the_one_around_it() -> None:
    watched = Watched(limit=0.2)
    with watched.dog as dog:
        dog.beat(1)
        with dog.section("starting", seconds=0.6):
            with dog.section("counting", seconds=30):
                time.sleep(0.8)
            time.sleep(0.4)
    assert watched.lines == []


def test_a_model_of_slow_steps_may_take_ten_times_its_longest() -> None:
    watched = Watched(limit=0.2)
    with watched.dog as dog:
        dog.beat(1)
        time.sleep(0.12)
        dog.beat(2)
        time.sleep(0.6)
    assert not watched.ended.is_set()


HOLDS_THE_INTERPRETER = """
import re, sys, torch
from aae_dist.training.watchdog import NullHeartbeatStore
from aae_dist.training.watchdog import Watchdog
from aae_dist.distributed.world import World
world = World(0, 1, 0, torch.device("cpu"))
with Watchdog(world, 1.0, print, NullHeartbeatStore(), tick=0.1, backstop=0.5) as dog:
    dog.beat(1)
    re.match(r"(a+)+$", "a" * 60 + "b")  # hours in C, without ever letting another thread run
"""


def test_a_thread_that_never_gives_the_interpreter_back_is_ended_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == EXIT_CODE
    assert "most recent call first" in done.stderr


def beat(rank: int, **fields: object) -> Heartbeat:
    stalled = {"step": 5, "stalled_seconds": 60.0, "location": "x.py:1"}
    return Heartbeat(**{"rank": rank, **stalled, **fields})


def waiting(rank: int, **fields: object) -> Heartbeat:
    return beat(rank, in_collective=True, **fields)


def lost(rank: int, **fields: object) -> Heartbeat:
    return beat(rank, age_seconds=20.0, is_lost=True, **fields)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([waiting(0), lost(1)], 1),  # a stopped process
        ([waiting(0, step=6), waiting(1)], 1),  # a step behind
        ([waiting(0), beat(1)], 1),  # hangs outside of torch
        ([beat(0), waiting(1)], 0),
        ([waiting(0), waiting(1, section="saving", section_left=-1.0)], 1),
    ],
)
def test_of_waiting_ranks_the_straggler_is_named(ranks: list[Heartbeat], expected: int) -> None:
    assert find_straggler({b.rank: b for b in ranks}).rank == expected


def test_a_lost_rank_is_in_no_section() -> None:
    assert is_in_section(beat(0, section="saving", section_left=100.0))
    assert not is_in_section(beat(0, section="saving", section_left=-1.0))
    assert not is_in_section(lost(0, section="saving", section_left=100.0))
