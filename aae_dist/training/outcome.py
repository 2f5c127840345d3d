"""What a call of `train` came to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a run ended this time."""

    state: str
    """finished, already_finished, interrupted, or pruned by a sweep; one that diverged raises."""
    step: int
    """Steps done since the start of the run."""
    metrics: dict[str, float]
    """Newest value of every metric."""
    run_uri: str
