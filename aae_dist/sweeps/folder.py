"""The folder of a sweep, `<run.storage>/<sweep.name>/`: what it says of the sweep and its trials.

    sweep.json          the sweep: what is searched, which trials there are, how far it is
    trials/<id>/        a run's folder each, plus
    trials/<id>/trial.json   what a run's folder cannot tell: parameters, state, seconds, cause
    best.yaml           the best trial's configuration, ready for `aae-dist train`

One process, the driver, writes sweep.json and trial.json; trials write their run folders.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from aae_dist.errors import DataError
from aae_dist.storage import Storage, open_storage, read_or_none
from aae_dist.tracking.sinks import parse_records

SWEEP, TRIAL, TRIALS, BEST = "sweep.json", "trial.json", "trials", "best.yaml"


class TrialState(StrEnum):
    """State of a trial; its value is what files and tables hold."""

    WAITING = "waiting"
    """Never started."""
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    """Stopped by the scheduler."""
    FAILED = "failed"
    """Ended by an error: diverged, a wrong configuration, crashed too often."""
    INTERRUPTED = "interrupted"
    """Neither running nor ended; it will resume."""


SweepState = Literal["running", "finished", "interrupted"]
STATES = tuple(TrialState)
SILENT_SECONDS = 120.0
"""A driver writes sweep.json at least every 10 s; one that was silent for so long is gone."""
READERS = 16
COPIED_KEYS = (
    *("name", "metric", "mode", "space", "search", "scheduler"),
    *("num_trials", "started_at", "updated_at", "seconds"),
)
"""Keys of sweep.json that a `SweepRecord` takes as they are."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as far as it has come."""

    id: str
    """Hash of the parameters; the name of its folder."""
    number: int
    """Place in the order in which trials were proposed, from 0."""
    uri: str
    """Its run folder."""
    parameters: Mapping[str, Any]
    """What the search chose, by dotted key; a structural value is a map."""
    values: Mapping[str, Any]
    """The same as they are now: PBT changes them while the trial runs."""
    state: TrialState = TrialState.WAITING
    cause: str | None = None
    """Why it failed or was pruned, in one line."""
    step: int = 0
    """Steps done."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Newest value of every metric; None for one that was not finite."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Its metrics.jsonl: one map per log point."""
    seconds: float = 0.0
    """Wall seconds in which it held its workers, over all attempts."""
    workers: int = 1
    lineage: tuple[Mapping[str, Any], ...] = ()
    """PBT: {parent, step, values} of each time it exploited another trial's state."""
    restarts: int = 0
    """Times that its process failed and was started again."""

    @property
    def worker_hours(self) -> float:
        """Hours of one worker that the trial has cost."""
        return self.seconds * self.workers / 3600


@dataclass(frozen=True)
class SweepRecord:
    """A sweep and all its trials."""

    name: str
    uri: str
    state: SweepState
    metric: Any
    """As in the configuration: a name, a list of names (Pareto), or a map of weights."""
    mode: Any
    space: Mapping[str, Any]
    """Terms by dotted key, in the order of the file."""
    search: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    num_trials: int
    """Trials planned."""
    started_at: str
    """UTC, ISO 8601, of the first start."""
    updated_at: str
    seconds: float
    """Wall seconds that drivers of this sweep have run, all in all."""
    trials: tuple[TrialRecord, ...]
    """By number."""

    def counts(self) -> dict[str, int]:
        return {state: sum(t.state == state for t in self.trials) for state in STATES}


def read_sweep(uri: str, histories: bool = True) -> SweepRecord:
    """Read a sweep while it runs or afterwards.

    Args:
        uri: the sweep's folder, local or in a bucket.
        histories: also read each trial's metrics.jsonl.

    Raises:
        DataError: there is no sweep.
        LaunchError: the storage cannot be read.
    """
    storage = open_storage(uri)
    document = read_json(storage, SWEEP)
    if document is None:
        raise DataError(f"{uri} holds no {SWEEP}; give the folder of a sweep, as `tune` printed it")
    age = (datetime.now(UTC) - datetime.fromisoformat(document["updated_at"])).total_seconds()
    live = document["state"] == "running" and age < SILENT_SECONDS
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-sweep") as pool:
        planned = document["trials"]
        trials = pool.map(lambda one: _trial(storage, one, live, histories), planned)
        found = tuple(sorted(trials, key=lambda trial: trial.number))
    written: SweepState = document["state"]
    state: SweepState = "interrupted" if written == "running" and not live else written
    copied = {name: document[name] for name in COPIED_KEYS}
    return SweepRecord(uri=uri, state=state, trials=found, **copied)


def read_json(storage: Storage, key: str) -> dict[str, Any] | None:
    """Return a JSON map, None when the file is absent."""
    text = read_or_none(storage, key)
    return None if text is None else json.loads(text)


def _trial(sweep: Storage, planned: Mapping[str, Any], live: bool, histories: bool) -> TrialRecord:
    folder = sweep.child(TRIALS).child(planned["id"])
    own = read_json(folder, TRIAL)
    if own is None:
        parameters = planned["parameters"]
        return TrialRecord(planned["id"], planned["number"], folder.uri, parameters, parameters)
    summary = read_json(folder, "summary.json") or {}
    lines = read_or_none(folder, "metrics.jsonl") if histories or not summary else None
    history = tuple(parse_records(lines or b""))
    metrics: dict[str, float | None] = {}
    for record in history:
        metrics |= record
    metrics |= summary.get("metrics", {}) if summary.get("state") == "finished" else {}
    state = TrialState(own["state"])  # without a live driver none runs
    return TrialRecord(
        id=planned["id"],
        number=planned["number"],
        uri=folder.uri,
        parameters=planned["parameters"],
        values=own["values"],
        state=TrialState.INTERRUPTED if state == TrialState.RUNNING and not live else state,
        cause=own["cause"],
        step=max(int(own["step"]), int(metrics.get("step") or 0)),
        metrics=metrics or own["metrics"],
        history=history,
        seconds=own["seconds"],
        workers=own["workers"],
        lineage=tuple(own["lineage"]),
        restarts=own.get("restarts", 0),
    )
