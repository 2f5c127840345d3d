"""The interface between training and its launcher: callbacks during a run, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class RunState(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    ALREADY_FINISHED = "already_finished"
    """In an earlier launch."""
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"
    """Interrupted by a sweep."""
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Outcome:
    """The result of a training run; one that diverged raises an error instead."""

    state: RunState
    step: int
    """Steps done since the start of the run."""
    metrics: dict[str, float]
    """Newest value of every metric."""
    run_uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", RunState(self.state))  # text, where it comes from JSON


class Reporter(Protocol):
    """The launcher's callbacks: progress out, stop and save requests in."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a log point; every rank calls it at the same steps."""

    def stop_requested(self) -> bool:
        """Return whether this process was asked to stop; cheap, local, never blocks."""

    def stopped_as(self) -> str:
        """Return the `RunState` of a run that was asked to stop: interrupted or pruned."""

    def save_requested(self) -> bool:
        """Return whether a checkpoint was requested, once per request; cheap, local."""

    def line(self, text: str) -> None:
        """Show one line of progress; called on rank 0 only."""
