"""A run as its launcher sees it: how it ended, the launcher's callbacks, and the run's folder.

The folder is `<run.storage>/<run.name>/`, with the same layout for every launcher.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from aae_dist.config import RunConfig, dump_yaml
from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, join, open_storage, read_or_none
from aae_dist.utils.text import redacted


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


CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
MARKER = ".nonce"
"""Shows workers that they see the folder that the driver sees."""


class RunFolder:
    """Reads and writes the files of a run, except for its checkpoints."""

    def __init__(self, config: RunConfig, probe: bool = False) -> None:
        """Open the folder that `config.run` names; nothing is created or checked yet."""
        self.uri = join(config.run.storage, config.run.name)
        self.storage: Storage = open_storage(self.uri, probe=probe)

    def write_config(self, config: RunConfig) -> None:
        self.storage.write(CONFIG, dump_yaml(config, without_secrets=True).encode())

    def write_summary(
        self, outcome: Outcome, config: RunConfig, alarms: Mapping[str, int] | None = None
    ) -> None:
        """Write how the run ended; a metric that is not finite becomes null.

        `alarms` are the steps at which each alarm was first raised.
        """
        summary = {
            "state": outcome.state,
            "step": outcome.step,
            "metrics": {k: v if math.isfinite(v) else None for k, v in outcome.metrics.items()},
            "alarms": dict(alarms or {}),
            "config": redacted(config.model_dump(mode="json")),
        }
        self.storage.write(SUMMARY, json.dumps(summary, indent=2, allow_nan=False).encode())

    def read_summary(self) -> Mapping[str, Any] | None:
        text = read_or_none(self.storage, SUMMARY)
        return json.loads(text) if text else None


def write_marker(folder: Storage) -> str:
    """Return the folder's marker token, creating it on first launch."""
    token = secrets.token_hex(16)
    if folder.create(MARKER, token.encode()):
        return token
    return folder.read(MARKER).decode()


def check_marker(folder: Storage, token: str) -> None:
    """Raise LaunchError unless `folder` holds the driver's token: then it is another folder."""
    if read_or_none(folder, MARKER) != token.encode():
        raise LaunchError(
            f"{folder.uri}: this folder is not shared between nodes: a worker does not see what "
            "the driver wrote there. Set run.storage to s3:// (gs://, az://) or to a shared mount."
        )
