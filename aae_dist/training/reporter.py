"""The seam between training and whatever launched it."""

from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """What a launcher does for a running training; `RecordingReporter` in the tests is the fake."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Pass metrics of a log point on; every rank calls it at the same steps."""

    def stop_requested(self) -> bool:
        """Return whether somebody asked this process to stop; cheap, local, never blocks."""

    def stopped_as(self) -> str:
        """Return what a run that was asked to stop ends as: interrupted, or pruned by a sweep."""

    def save_requested(self) -> bool:
        """Return whether somebody wants a checkpoint soon, once a request; cheap, local."""

    def line(self, text: str) -> None:
        """Show one line of progress; called on rank 0 only."""
