"""Where metrics and pictures go: the seam to the training loop, names of metrics, metrics.jsonl."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

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
    """The sink that shows progress."""

    def on_step(self, step: int) -> None:
        """Take the number of a finished step; shown when nothing else was for long."""


OpenConsole = Callable[[int, int], Console]
"""Total steps and first step of a run -> its console."""


STEP = "step"
EPOCH = "epoch"
SAMPLES_PER_SECOND = "throughput/samples_per_second"

LOSS_PREFIX = "loss/"

LABELS = {
    "reconstruction/mse": "mse per pixel",
    "prior_match/c2st": "C2ST",
    "prior_match/sliced_wasserstein": "sliced Wasserstein",
    "prior_match/mmd": "MMD",
}
"""Display names of the main metrics."""


class JsonLinesSink:
    """Appends records to a node-local file that the training loop uploads whole.

    Args:
        path: The file; its folder is created. Its contents are replaced by `earlier`.
        earlier: Contents in the run folder from before a resume.
        resumed_step: Lines after this step are dropped from `earlier`: no step stands twice.
    """

    def __init__(self, path: Path, earlier: bytes = b"", resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in parse_records(earlier) if record["step"] <= resumed_step]
        self._path = path
        self._file = path.open("w", encoding="utf-8")
        for record in kept:
            self._append(record)

    def log(self, record: Record) -> None:
        self._append(record)

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Record, state: str) -> None:
        self._file.close()

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, which the run will repeat."""
        kept = [record for record in self.records() if record["step"] <= step]
        self._file.close()
        self._file = self._path.open("w", encoding="utf-8")
        for record in kept:
            self._append(record)

    def content(self) -> bytes:
        """Return the whole file, to be uploaded."""
        return self._path.read_bytes()

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far, those from before a resume included."""
        return parse_records(self.content())

    def _append(self, record: Record) -> None:
        self._file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        self._file.flush()


def parse_records(content: bytes) -> list[dict[str, Any]]:
    """Parse a metrics.jsonl; lines that are not complete records are skipped.

    A process that was killed while it wrote leaves half a line.
    """
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def finite(record: Record) -> dict[str, float | None]:
    """Return a record for JSON: a value that is not finite becomes null."""
    return {name: _finite(value) for name, value in record.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
