"""The folder of a sweep, `<run.storage>/<sweep.name>/`: what it says of the sweep and its trials.

    sweep.json          the sweep: what is searched, which trials there are, how far it is
    trials/<id>/        a run's folder each, plus
    trials/<id>/trial.json   what a run's folder cannot tell: parameters, state, seconds, cause
    best.yaml           the best trial's configuration, ready for `aae-dist train`

One process, the driver, writes sweep.json and trial.json; trials write their run folders.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from aae_dist.errors import DataError
from aae_dist.storage import Storage, documents, open_storage
from aae_dist.storage.documents import Count, Document, Map, Metrics, Seconds
from aae_dist.tracking.metric_log import newest_metrics, read_records
from aae_dist.training.folder import SUMMARY, RunState, Summary, Verdict

SWEEP, TRIAL, TRIALS, BEST = "sweep.json", "trial.json", "trials", "best.yaml"


def trial_label(number: int) -> str:
    """Return the number that people see, from #1: in console, report, pictures and W&B."""
    return f"#{number + 1}"


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
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _check_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Time = Annotated[str, AfterValidator(_check_time)]
"""ISO 8601, with its zone."""


class PlannedTrial(Document):
    """A trial as sweep.json lists it."""

    id: Annotated[str, Field(pattern=NAME)]
    number: Count
    parameters: Map
    added: bool = False


class SweepDocument(Document):
    """The contents of sweep.json."""

    name: str
    metric: str | list[str] | dict[str, float]
    mode: str | list[str]
    constraints: dict[str, float] = {}
    space: Map
    search: Map
    scheduler: Map
    num_trials: Count
    started_at: Time
    updated_at: Time
    seconds: Seconds
    state: SweepState
    trials: list[PlannedTrial]

    def age_seconds(self) -> float:
        """Return how long ago the driver wrote it."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated_at)).total_seconds()


class Exploit(Document):
    """One time that a trial took over the state of another one (PBT)."""

    parent: str
    step: Count
    values: Map


class TrialDocument(Document):
    """The contents of trial.json."""

    values: Map
    draws: Map | None = None
    state: TrialState
    cause: str | None
    step: Count = 0
    seconds: Seconds
    workers: Count = 1
    metrics: Metrics
    lineage: list[Exploit]
    restarts: Count = 0


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
    """Its metrics: one map per log point."""
    seconds: float = 0.0
    """Wall seconds in which it held its workers, over all attempts."""
    workers: int = 1
    lineage: tuple[Mapping[str, Any], ...] = ()
    """PBT: {parent, step, values} of each time it exploited another trial's state."""
    restarts: int = 0
    """Times that its process failed and was started again."""
    verdict: Verdict | None = None
    """Of a finished trial."""

    @property
    def label(self) -> str:
        return trial_label(self.number)

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
    constraints: Mapping[str, float] = field(default_factory=dict)
    """Metrics, each with its highest allowed value."""

    def counts(self) -> dict[str, int]:
        return {state: sum(t.state == state for t in self.trials) for state in STATES}


def read_sweep(uri: str, histories: bool = True) -> SweepRecord:
    """Read a sweep while it runs or afterwards.

    Args:
        uri: the sweep's folder, local or in a bucket.
        histories: also read all metrics of each trial.

    Raises:
        DataError: there is no sweep, or its sweep.json is damaged.
        LaunchError: the storage cannot be read.
    """
    storage = open_storage(uri)
    document = documents.read_document(storage, SWEEP, SweepDocument, documents.MAX_SWEEP_BYTES)
    if document is None:
        raise DataError(f"{uri} holds no {SWEEP}; give the folder of a sweep, as `tune` printed it")
    live = document.state == "running" and document.age_seconds() < SILENT_SECONDS
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-sweep") as pool:
        trials = pool.map(lambda one: _trial(storage, one, live, histories), document.trials)
        found = tuple(sorted(trials, key=lambda trial: trial.number))
    is_gone = document.state == "running" and not live
    return SweepRecord(
        name=document.name,
        uri=uri,
        state="interrupted" if is_gone else document.state,
        metric=document.metric,
        mode=document.mode,
        space=document.space,
        search=document.search,
        scheduler=document.scheduler,
        num_trials=document.num_trials,
        started_at=document.started_at,
        updated_at=document.updated_at,
        seconds=document.seconds,
        trials=found,
        constraints=document.constraints,
    )


def _trial(sweep: Storage, planned: PlannedTrial, live: bool, histories: bool) -> TrialRecord:
    """Return a trial; one whose files are damaged has failed, with the file as its cause."""
    folder = sweep.child(TRIALS).child(planned.id)
    plain = TrialRecord(
        planned.id, planned.number, folder.uri, planned.parameters, planned.parameters
    )
    try:
        own = documents.read_document(folder, TRIAL, TrialDocument)
        summary = None if own is None else documents.read_document(folder, SUMMARY, Summary)
    except DataError as error:
        return replace(plain, state=TrialState.FAILED, cause=str(error))
    if own is None:
        return plain
    history = tuple(read_records(folder)) if histories else ()
    metrics: dict[str, float | None] = {}
    for record in history:
        metrics |= record
    if not histories and summary is None:
        metrics = newest_metrics(folder)
    metrics |= summary.metrics if summary and summary.state == RunState.FINISHED else {}
    is_gone = own.state == TrialState.RUNNING and not live  # without a live driver none runs
    return replace(
        plain,
        values=own.values,
        state=TrialState.INTERRUPTED if is_gone else own.state,
        cause=own.cause,
        step=max(own.step, int(metrics.get("step") or 0)),
        metrics=metrics or own.metrics,
        history=history,
        seconds=own.seconds,
        workers=own.workers,
        lineage=tuple(event.model_dump() for event in own.lineage),
        restarts=own.restarts,
        verdict=summary.verdict if summary else None,
    )
