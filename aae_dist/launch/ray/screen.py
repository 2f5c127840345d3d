"""The live bar of a run under Ray: rank 0 tells how far it is, the driver's terminal shows it."""

import time
from typing import Any

from aae_dist.launch.log import say
from aae_dist.launch.ray.monitor import News
from aae_dist.tracking.console import LiveBarSink
from aae_dist.tracking.sinks import Record

TELL_SECONDS = 0.5
"""Least time between two messages between log points."""


class Screen:
    """Hears the news in the driver, in the place of `print_lines`; to be closed at the end."""

    def __init__(self) -> None:
        """Show a bar as soon as the length of the run is known."""
        self._bar: LiveBarSink | None = None
        self._plan: tuple[int, int] | None = None

    def __call__(self, news: News) -> None:
        """Print lines above the bar and move it; workers that started again have another plan."""
        for line in news.lines:
            say(line)
        if news.plan is not None and news.plan != self._plan:
            self.close()
            self._plan, self._bar = news.plan, LiveBarSink(*news.plan)
        if self._bar is not None:
            self._bar.on_step(news.step)
            for metrics in news.metrics:
                self._bar.log(metrics)

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.close({}, "")


class FarConsole:
    """The console of rank 0: what it logs the driver gets anyway, with the metrics."""

    def __init__(self, monitor: Any, total_steps: int, first_step: int) -> None:
        """Tell the actor `monitor` how long the run is."""
        self._monitor, self._told_at = monitor, time.monotonic()
        monitor.set_plan.remote(total_steps, first_step)

    def on_step(self, step: int) -> None:
        """Tell now and then how far the run is."""
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            self._monitor.set_step.remote(step)

    def log(self, record: Record) -> None:
        """Tell the step; `RayReporter.report` sends the rest."""
        self._monitor.set_step.remote(int(record["step"]))

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Pictures are files of their own."""

    def close(self, summary: Record, state: str) -> None:
        """The driver ends the bar."""
