import io
import re
import time

import pytest
from rich.console import Console

from aae_dist.tracking.sinks import ConsoleSink, LiveBarSink, open_console
from aae_dist.utils.text import clock


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def record(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "epoch": step / 10,
        "samples_seen": step * 8,
        "loss/reconstruction": 31.4159265,
        "loss/generator": 0.7,
        "throughput/samples_per_second": 12345.6,
        **more,
    }


def test_a_line_shows_progress_losses_speed_and_time_left():
    lines, clock = [], Clock()
    sink = ConsoleSink(lines.append, total_steps=1000, clock=clock)
    clock.seconds += 10
    sink.log(record(200))
    assert lines == [
        "step  200/1000 (20 %) | epoch 20.00 | reconstruction 31.42 | generator 0.7 "
        "| 12,346 samples/s | 0:40 left"
    ]


def test_time_left_counts_from_the_resumed_step():
    lines, clock = [], Clock()
    sink = ConsoleSink(lines.append, total_steps=1000, first_step=900, clock=clock)
    clock.seconds += 10
    sink.log(record(950))
    assert lines[0].endswith("0:10 left")


def test_a_fast_run_writes_a_line_every_few_seconds_and_its_last():
    lines, clock = [], Clock()
    sink = ConsoleSink(lines.append, total_steps=100, clock=clock, min_seconds=3)
    for step in range(1, 101):
        clock.seconds += 0.125
        sink.log(record(step))
    shown = [int(re.search(r"step +(\d+)", line).group(1)) for line in lines]
    assert shown == [1, 25, 49, 73, 97, 100]


def test_where_steps_take_seconds_a_line_comes_between_log_points():
    lines, clock = [], Clock()
    sink = ConsoleSink(lines.append, total_steps=100, clock=clock)
    for step in range(1, 8):
        clock.seconds += 4
        sink.on_step(step)
    assert lines == [
        "step   3/100 (3 %) | 6:28 left",
        "step   6/100 (6 %) | 6:16 left",
    ]
    sink.log(record(7))
    clock.seconds += 4
    sink.on_step(8)  # the log point has said enough
    assert len(lines) == 3


def test_an_evaluation_is_always_written():
    lines, clock = [], Clock()
    sink = ConsoleSink(lines.append, total_steps=100, clock=clock)
    sink.log(record(1))
    sink.log(record(2, **{"prior_match/c2st": 0.61234, "reconstruction/mse": 0.02}))
    sink.log({"step": 3, "prior_match/c2st": 0.6})
    assert lines[1:] == [
        "evaluation at step 2: mse per value 0.02, C2ST 0.6123",
        "evaluation at step 3: C2ST 0.6",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations_are_readable(seconds, text):
    assert clock(seconds) == text


def test_without_a_terminal_lines_are_written():
    assert isinstance(open_console(print, total_steps=1), ConsoleSink)


def test_the_bar_moves_and_evaluations_scroll_by_above_it():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    sink = LiveBarSink(total_steps=100, console=console)
    sink.on_step(42)
    sink.log(record(50, **{"prior_match/c2st": 0.6}))
    sink.close({}, "finished")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "evaluation at step 50: C2ST 0.6" in text
    assert "step 50/100" in text
    assert "reconstruction 31.42" in text


def test_a_narrow_bar_keeps_step_speed_and_time_left():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    sink = LiveBarSink(total_steps=4500, console=console)
    losses = {f"loss/{name}": 31.4159 for name in ("distance", "discriminator", "generator")}
    sink.log(record(400, **losses, **{"throughput/samples_per_second": 1447.0}))
    time.sleep(0.01)
    sink.log(record(500, **losses, **{"throughput/samples_per_second": 1447.0}))
    sink.close({}, "finished")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "step 500/4500" in text
    assert "1,447 samples/s" in text
    assert " left " in text
    assert max(map(len, re.split(r"[\r\n]", text))) <= 80
