"""Where metrics and pictures go: the seam between the training loop and whatever shows them."""

from collections.abc import Callable, Mapping
from typing import Protocol

Record = Mapping[str, float | int]
"""One log point: `step`, `epoch`, `samples_seen` and metrics by the names of `tracking.names`."""


class MetricSink(Protocol):
    """One destination; only rank 0 has any. No method may raise for an outside failure."""

    def log(self, record: Record) -> None:
        """Take one log point; a record's `step` is never lower than the one before."""

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Take one picture drawn at `step`."""

    def close(self, summary: Record, state: str) -> None:
        """Finish: final metrics, and finished, interrupted, pruned, diverged or failed."""


class Console(MetricSink, Protocol):
    """The sink that people watch."""

    def tick(self, step: int) -> None:
        """Learn that `step` is done, after each one; shown where nothing else was for long."""


OpenConsole = Callable[[int, int], Console]
"""Makes the console of a run from the steps of the whole run and the step that it starts from."""
