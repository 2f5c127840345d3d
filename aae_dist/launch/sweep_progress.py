"""A sweep on the terminal: a live table, or lines without a terminal."""

import sys
import time
from collections.abc import Callable

from rich import console, live, table, text

from aae_dist.config.metric_names import NUM_FEATURED, NUM_SAMPLES
from aae_dist.sweeps.folder import TrialState
from aae_dist.sweeps.ledger import FINAL, Entry, Ledger
from aae_dist.sweeps.plan import describe
from aae_dist.utils.text import clock, echo

LINE_SECONDS = 30.0
"""Time between two lines on how far the sweep is; ends of trials are shown at once."""
SHOWN = 12  # running trials that the live table shows


class SweepProgress:
    """Shows how far a sweep is; `update` is called about twice per second."""

    def __init__(
        self,
        ledger: Ledger,
        concurrent: int,
        clock: Callable[[], float] = time.monotonic,
        terminal: console.Console | None = None,
    ) -> None:
        self._ledger, self._concurrent, self._clock = ledger, concurrent, clock
        self._reported = {entry.plan.id for entry in ledger.in_state(*FINAL)}
        self._restarts = {entry.plan.id: entry.restarts for entry in ledger.entries.values()}
        self._next_line = clock() + LINE_SECONDS
        if terminal is None and sys.stdout.isatty():
            terminal = console.Console()
        self._live = live.Live(console=terminal, auto_refresh=False) if terminal else None

    def __enter__(self) -> "SweepProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        for line in self._new_lines():
            self._print(line)
        if self._live is not None:
            self._live.update(console.Group(self._table(), text.Text(self.status())), refresh=True)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_SECONDS
            echo(self.status())

    def status(self) -> str:
        counts = self._ledger.counts()
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        for best in self._ledger.ranked()[:1]:
            parts.append(f"best {self.score(best)} ({describe(best.parameters)})")
        if (left := self.seconds_left()) is not None:
            parts.append(f"about {clock(left)} left")
        return f"sweep {self._ledger.plan.sweep.name}: " + " | ".join(parts)

    def seconds_left(self) -> float | None:
        """Return an estimate from the mean cost of ended trials, None before the first one."""
        ended = self._ledger.in_state(TrialState.FINISHED, TrialState.PRUNED)
        costs, counts = [e.seconds for e in ended if e.seconds > 0], self._ledger.counts()
        running = self._ledger.in_state(TrialState.RUNNING)
        to_start = counts[TrialState.WAITING] + counts[TrialState.INTERRUPTED]
        if not costs or not running and not to_start:
            return None
        mean = sum(costs) / len(costs)
        left = sum(max(mean - entry.cost(), 0.0) for entry in running) + to_start * mean
        return left / self._concurrent

    def score(self, entry: Entry) -> str:
        values = self._ledger.objective.values(entry.metrics)
        return "no score" if values is None else ", ".join(f"{value:.4g}" for value in values)

    def _new_lines(self) -> list[str]:
        lines = []
        for entry in self._ledger.in_state(TrialState.RUNNING, TrialState.INTERRUPTED, *FINAL):
            name = entry.plan.id
            if entry.restarts > self._restarts.get(name, 0):
                self._restarts[name] = entry.restarts
                lines.append(f"{self._title(entry)} starts again: {entry.cause or 'it crashed'}")
            if entry.state in FINAL and name not in self._reported:
                self._reported.add(name)
                lines.append(self._end_line(entry))
        return lines

    def _title(self, entry: Entry) -> str:
        trials = self._ledger.plan.num_trials
        return f"trial {entry.plan.label} of {trials} ({describe(entry.parameters)})"

    def _end_line(self, entry: Entry) -> str:
        took = clock(entry.seconds)
        if entry.state == TrialState.FINISHED:
            cause = f"; {entry.cause}" if entry.cause else ""
            if not self._ledger.is_comparable(entry.metrics):
                n = entry.metrics.get(NUM_SAMPLES) or entry.metrics[NUM_FEATURED]
                cause += f"; of {n:g} samples, other trials of another number or other features: "
                cause += "not compared"
            return f"{self._title(entry)} finished: {self.score(entry)}, {took}{cause}"
        return f"{self._title(entry)} {entry.state}: {entry.cause}, {took}"

    def _table(self) -> table.Table:
        rows = table.Table("trial", "parameters", "step", str(self._ledger.objective), "time")
        for entry in self._ledger.in_state(TrialState.RUNNING)[:SHOWN]:
            score, time = self.score(entry), clock(entry.cost())
            rows.add_row(
                entry.plan.label, describe(entry.parameters), f"{entry.step:,}", score, time
            )
        return rows

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            echo(line)
