"""The interface between training and its launcher: callbacks during a run, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

RunState = Literal["finished", "already_finished", "interrupted", "pruned", "diverged"]
"""How a run ended; pruned by a sweep."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training run; one that diverged raises an error instead."""

    state: str
    """A `RunState`."""
    step: int
    """Steps done since the start of the run."""
    metrics: dict[str, float]
    """Newest value of every metric."""
    run_uri: str


class Reporter(Protocol):
    """The launcher's callbacks: progress out, stop and save requests in."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a log point; every rank calls it at the same steps."""

    def stop_requested(self) -> bool:
        """Return whether this process was asked to stop; cheap, local, never blocks."""

    def stopped_as(self) -> str:
        """Return the state of a run that was asked to stop: interrupted, or pruned by a sweep."""

    def save_requested(self) -> bool:
        """Return whether a checkpoint was requested, once per request; cheap, local."""

    def line(self, text: str) -> None:
        """Show one line of progress; called on rank 0 only."""
