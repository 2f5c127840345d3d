"""Where metrics go: the seam to the training loop, metrics.jsonl, and progress for people."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import from_json

from aae_dist.utils.text import clock, four_digits

if TYPE_CHECKING:
    from rich.console import Console as Terminal

Record = Mapping[str, float | int]
"""One log point: `step`, `epoch`, `samples_seen` and metrics by name."""


Summary = Mapping[str, float | int | str]
"""Final metrics by name, and the verdict on the run in words."""


class MetricSink(Protocol):
    """One destination; only rank 0 has any. No method may raise for an outside failure."""

    def log(self, record: Record) -> None:
        """Take one log point; a record's `step` is never lower than the one before."""

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Take one picture drawn at `step`."""

    def close(self, summary: Summary, state: str) -> None:
        """Finish: final metrics, the verdict's words, and how the run ended.

        That is finished, interrupted, pruned, diverged or failed.
        """


class Console(MetricSink, Protocol):
    """The sink that shows progress."""

    def on_step(self, step: int) -> None:
        """Take the number of a finished step; shown when nothing else was for long."""


OpenConsole = Callable[[int, int], Console]
"""Total steps and first step of a run -> its console."""


_INT64 = 2**62
STEP = "step"
EPOCH = "epoch"
SAMPLES_PER_SECOND = "throughput/samples_per_second"

LOSS_PREFIX = "loss/"

LABELS = {
    "reconstruction/mse": "mse per value",
    "prior_match/c2st": "C2ST",
    "prior_match/sliced_wasserstein": "sliced Wasserstein",
    "prior_match/mmd": "MMD",
}
"""Display names of the main metrics."""


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line of metrics.jsonl, None if it holds none.

    Values that are no finite numbers are left out.
    """
    # A process that was killed while it wrote leaves half a line.
    try:
        record = from_json(line, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(record, dict) or not _is_step(record.get("step")):
        return None
    return {name: v for name, v in record.items() if _is_number(v)}


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INT64


def _is_number(value: Any) -> bool:
    """Return whether a value of a record is a finite number, or null in place of one."""
    if value is None or type(value) is int and abs(value) < _INT64:
        return True
    return type(value) is float and math.isfinite(value)


def finite(record: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return a record for JSON: a value that is not finite becomes null."""
    items = record.items()
    return {name: v if v is not None and math.isfinite(v) else None for name, v in items}


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


class NoConsole:
    """Shows nothing."""

    def log(self, record: Record) -> None:
        pass

    def on_step(self, step: int) -> None:
        pass

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Summary, state: str) -> None:
        pass


class ConsoleSink(NoConsole):
    """Writes a line per log point, at most one every `min_seconds`, and one per evaluation."""

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
        step = int(record[STEP])
        if losses_of(record) and (step >= self._progress.total_steps or self._is_time()):
            self._show(record)
        if scores := evaluation_text(record):
            self._write(f"evaluation at step {step}: {scores}")

    def on_step(self, step: int) -> None:
        if self._clock() - (self._written_at or self._started_at) >= QUIET_SECONDS:
            self._show({STEP: step})

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
    step, total = int(record[STEP]), progress.total_steps
    parts = [f"step {step:>{len(str(total))}}/{total} ({100 * step // max(total, 1)} %)"]
    if EPOCH in record:
        parts.append(f"epoch {record[EPOCH]:.2f}")
    return " | ".join([*parts, *_losses(record), *_speed(record, progress)])


def _losses(record: Record) -> list[str]:
    return [f"{name} {four_digits(value)}" for name, value in losses_of(record).items()]


def _speed(record: Record, progress: Progress) -> list[str]:
    parts = []
    if SAMPLES_PER_SECOND in record:
        parts.append(f"{record[SAMPLES_PER_SECOND]:,.0f} samples/s")
    if (left := progress.seconds_left(int(record[STEP]))) is not None:
        parts.append(f"{clock(left)} left")
    return parts


def losses_of(record: Record) -> dict[str, float]:
    """Return the losses of a log point by their short names."""
    found = {n: v for n, v in record.items() if n.startswith(LOSS_PREFIX)}
    return {name.removeprefix(LOSS_PREFIX): value for name, value in found.items()}


def evaluation_text(record: Record) -> str:
    """Return the main scores; empty if the record holds no evaluation."""
    present = {label: record[name] for name, label in LABELS.items() if name in record}
    return ", ".join(f"{label} {four_digits(value)}" for label, value in present.items())


MOVE_SECONDS = 0.25
"""Shortest time between two moves of the bar between log points."""


class LiveBarSink(NoConsole):
    """Shows one live line; evaluations and all other output scroll by above it."""

    def __init__(
        self, total_steps: int, first_step: int = 0, console: "Terminal | None" = None
    ) -> None:
        # Imported here: a job log has no use for it.
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress as Bar, TextColumn
        from rich.table import Column

        self._progress = Progress(total_steps, first_step, time.monotonic)
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            # It alone gives way: 80 columns are too few for four losses.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
        )
        self._bar = Bar(*columns, console=console or Terminal(), expand=True)
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._moved_at = 0.0
        self._bar.start()

    def log(self, record: Record) -> None:
        step = int(record[STEP])
        if losses_of(record):
            text = "  ".join([*_speed(record, self._progress), *_losses(record)])
            self._bar.update(self._task, completed=step, description=text)
        if scores := evaluation_text(record):
            self._bar.console.print(f"evaluation at step {step}: {scores}", highlight=False)

    def on_step(self, step: int) -> None:
        if time.monotonic() - self._moved_at >= MOVE_SECONDS:
            self._moved_at = time.monotonic()
            self._bar.update(self._task, completed=step)

    def close(self, summary: Summary, state: str) -> None:
        self._bar.stop()
