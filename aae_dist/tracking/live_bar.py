"""A progress bar that is updated in place, for a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from aae_dist.tracking import names
from aae_dist.tracking.console import (
    Progress,
    duration,
    evaluation_text,
    losses_of,
    number,
)
from aae_dist.tracking.sinks import Record

MOVE_SECONDS = 0.25
"""Least time between two moves of the bar between log points."""


class LiveBarSink:
    """Shows one live line; evaluations, and whatever else is printed, scroll by above it.

    Args:
        total_steps: Steps of the whole run.
        first_step: The step that a resumed run starts from.
        console: Where to show it; by default standard output.
    """

    def __init__(
        self, total_steps: int, first_step: int = 0, console: Console | None = None
    ) -> None:
        self._progress = Progress(total_steps, first_step, time.monotonic)
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
        )
        self._bar = Bar(*columns, console=console or Console())
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._moved_at = 0.0
        self._bar.start()

    def log(self, record: Record) -> None:
        """Move the bar; print an evaluation above it."""
        step = int(record[names.STEP])
        if losses_of(record):
            text = self._description(record, step)
            self._bar.update(self._task, completed=step, description=text)
        if scores := evaluation_text(record):
            self._bar.console.print(f"evaluation at step {step}: {scores}", highlight=False)

    def tick(self, step: int) -> None:
        """Move the bar, a few times a second at most."""
        if time.monotonic() - self._moved_at >= MOVE_SECONDS:
            self._moved_at = time.monotonic()
            self._bar.update(self._task, completed=step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Pictures are files of their own."""

    def close(self, summary: Record, state: str) -> None:
        """Leave the bar as it stands and give the terminal back."""
        self._bar.stop()

    def _description(self, record: Record, step: int) -> str:
        parts = [f"{name} {number(value)}" for name, value in losses_of(record).items()]
        if names.SAMPLES_PER_SECOND in record:
            parts.append(f"{record[names.SAMPLES_PER_SECOND]:,.0f} samples/s")
        if (left := self._progress.seconds_left(step)) is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)
