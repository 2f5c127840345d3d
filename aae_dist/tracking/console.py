"""Progress for people: lines in a job log, a progress bar on a terminal."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aae_dist.tracking import sinks
from aae_dist.tracking.sinks import Console, Record
from aae_dist.utils.formatting import clock, four_digits

if TYPE_CHECKING:
    from rich.console import Console as Terminal

Write = Callable[[str], None]
Clock = Callable[[], float]
MIN_SECONDS = 3.0
"""Shortest time between two lines of progress: a fast run would hide everything else."""
QUIET_SECONDS = 10.0
"""Longest time without a line: where steps take seconds, log points are minutes apart."""


class Progress:
    """How far a run is and how long it still takes, from the steps done since this start."""

    def __init__(self, total_steps: int, first_step: int, clock: Clock) -> None:
        """Start the clock; `first_step` is the step that a resumed run starts from."""
        self.total_steps, self._first_step, self._clock = total_steps, first_step, clock
        self._started = clock()

    def seconds_left(self, step: int) -> float | None:
        """Return the estimate, evaluations and checkpoints included; None before the first step."""
        done = step - self._first_step
        if done <= 0:
            return None
        return (self._clock() - self._started) / done * max(self.total_steps - step, 0)


class ConsoleSink:
    """Writes a line per log point, at most one every few seconds, and one per evaluation.

    Args:
        write: Shows one line.
        total_steps: Steps of the whole run.
        first_step: The step that a resumed run starts from.
        clock: Seconds that only grow.
        min_seconds: Shortest time between two lines of progress.
    """

    def __init__(
        self,
        write: Write,
        total_steps: int,
        first_step: int = 0,
        clock: Clock = time.monotonic,
        min_seconds: float = MIN_SECONDS,
    ) -> None:
        self._write, self._clock, self._min_seconds = write, clock, min_seconds
        self._progress = Progress(total_steps, first_step, clock)
        self._written_at: float | None = None
        self._started_at = clock()

    def log(self, record: Record) -> None:
        step = int(record[sinks.STEP])
        if losses_of(record) and (step >= self._progress.total_steps or self._is_time()):
            self._show(record)
        if scores := evaluation_text(record):
            self._write(f"evaluation at step {step}: {scores}")

    def on_step(self, step: int) -> None:
        if self._clock() - (self._written_at or self._started_at) >= QUIET_SECONDS:
            self._show({sinks.STEP: step})

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Record, state: str) -> None:
        pass

    def _show(self, record: Record) -> None:
        self._write(progress_line(record, self._progress))
        self._written_at = self._clock()

    def _is_time(self) -> bool:
        return self._written_at is None or self._clock() - self._written_at >= self._min_seconds


def open_console(write: Write, total_steps: int, first_step: int = 0) -> Console:
    """Return a live bar where standard output is a terminal, lines anywhere else."""
    if not sys.stdout.isatty():
        return ConsoleSink(write, total_steps, first_step)
    return LiveBarSink(total_steps, first_step)


def progress_line(record: Record, progress: Progress) -> str:
    """Return one line: step, epoch, losses, speed and time left."""
    step, total = int(record[sinks.STEP]), progress.total_steps
    parts = [f"step {step:>{len(str(total))}}/{total} ({100 * step // max(total, 1)} %)"]
    if sinks.EPOCH in record:
        parts.append(f"epoch {record[sinks.EPOCH]:.2f}")
    parts += [f"{name} {four_digits(value)}" for name, value in losses_of(record).items()]
    if sinks.SAMPLES_PER_SECOND in record:
        parts.append(f"{record[sinks.SAMPLES_PER_SECOND]:,.0f} samples/s")
    if (left := progress.seconds_left(step)) is not None:
        parts.append(f"{clock(left)} left")
    return " | ".join(parts)


def losses_of(record: Record) -> dict[str, float]:
    """Return the losses of a log point by their short sinks."""
    found = {n: v for n, v in record.items() if n.startswith(sinks.LOSS_PREFIX)}
    return {name.removeprefix(sinks.LOSS_PREFIX): value for name, value in found.items()}


def evaluation_text(record: Record) -> str:
    """Return the main scores; empty if the record holds no evaluation."""
    present = {label: record[name] for name, label in sinks.LABELS.items() if name in record}
    return ", ".join(f"{label} {four_digits(value)}" for label, value in present.items())


MOVE_SECONDS = 0.25
"""Shortest time between two moves of the bar between log points."""


class LiveBarSink:
    """Shows one live line; evaluations and all other output scroll by above it.

    Args:
        total_steps: Steps of the whole run.
        first_step: The step that a resumed run starts from.
        console: Where to show it; by default standard output.
    """

    def __init__(
        self, total_steps: int, first_step: int = 0, console: "Terminal | None" = None
    ) -> None:
        # Imported here: a job log has no use for it.
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._progress = Progress(total_steps, first_step, time.monotonic)
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
        )
        self._bar = Bar(*columns, console=console or Terminal())
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._moved_at = 0.0
        self._bar.start()

    def log(self, record: Record) -> None:
        step = int(record[sinks.STEP])
        if losses_of(record):
            text = self._description(record, step)
            self._bar.update(self._task, completed=step, description=text)
        if scores := evaluation_text(record):
            self._bar.console.print(f"evaluation at step {step}: {scores}", highlight=False)

    def on_step(self, step: int) -> None:
        if time.monotonic() - self._moved_at >= MOVE_SECONDS:
            self._moved_at = time.monotonic()
            self._bar.update(self._task, completed=step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Record, state: str) -> None:
        self._bar.stop()

    def _description(self, record: Record, step: int) -> str:
        parts = [f"{name} {four_digits(value)}" for name, value in losses_of(record).items()]
        if sinks.SAMPLES_PER_SECOND in record:
            parts.append(f"{record[sinks.SAMPLES_PER_SECOND]:,.0f} samples/s")
        if (left := self._progress.seconds_left(step)) is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)
