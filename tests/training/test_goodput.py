"""Every second of a run is counted once, over all of its attempts."""

import pytest

from aae_dist.training.recorder import PARTS, Goodput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, saved: dict | None = None) -> Goodput:
    return Goodput(saved, clock, clock)


def test_the_parts_sum_to_the_wall_time() -> None:
    clock = Clock()
    goodput = meter(clock)
    clock.now += 3  # until the first step
    goodput.step_done()
    for _ in range(4):
        with goodput.part("data_wait"):
            clock.now += 0.5
        clock.now += 1
        goodput.step_done()
    with goodput.part("evaluation"):
        clock.now += 2
        with goodput.part("checkpoint"):
            clock.now += 1
        clock.now += 2
    found = goodput.metrics()
    parts = {part: found[f"goodput/{part}_seconds"] for part in PARTS}
    assert parts == {
        "useful": 4.0,
        "data_wait": 2.0,
        "checkpoint": 1.0,
        "evaluation": 4.0,
        "record": 0.0,
        "stall": 0.0,
        "restart": 3.0,
    }
    assert found["goodput/wall_seconds"] == sum(parts.values())
    assert found["goodput/fraction"] == pytest.approx(4 / 14, abs=1e-4)


def test_an_attempt_counts_on_from_its_checkpoint_and_the_lost_time_as_restart() -> None:
    clock = Clock()
    first = meter(clock)
    first.step_done()
    clock.now += 10
    saved = first.metadata(finished=False)
    clock.now += 50  # steps that are lost, and nobody there
    second = meter(clock, saved)
    clock.now += 5
    second.step_done()
    clock.now += 10
    second.step_done()
    found = second.metrics()
    assert found["goodput/useful_seconds"] == 20
    assert found["goodput/restart_seconds"] == 55
    assert found["goodput/wall_seconds"] == clock.now - 100


def test_a_run_that_had_finished_lost_no_time_until_it_was_prolonged() -> None:
    clock = Clock()
    first = meter(clock)
    first.step_done()
    saved = first.metadata(finished=True)
    clock.now += 1000
    assert meter(clock, saved).metrics()["goodput/wall_seconds"] == 0


def test_steps_that_take_much_longer_than_usual_stall() -> None:
    clock = Clock()
    goodput = meter(clock)
    goodput.step_done()
    for _ in range(10):
        clock.now += 0.1
        goodput.step_done()
    assert goodput.metrics()["goodput/stall_seconds"] == 0
    for seconds in (0.1, 20.1, 0.1):
        clock.now += seconds
        goodput.step_done()
    found = goodput.metrics()
    assert found["goodput/stall_seconds"] == pytest.approx(20.0, abs=0.3)
    assert found["goodput/useful_seconds"] == pytest.approx(1.3, abs=0.3)


def test_the_way_back_to_a_checkpoint_is_restart() -> None:
    clock = Clock()
    goodput = meter(clock)
    goodput.step_done()
    clock.now += 1
    goodput.restart()
    clock.now += 7
    goodput.step_done()
    clock.now += 1
    assert goodput.metrics()["goodput/restart_seconds"] == 7
    assert goodput.metrics()["goodput/useful_seconds"] == 2
