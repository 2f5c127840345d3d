"""What stands in a folder of runs: each run's state, step and metrics, from a few small files.

Nothing here imports torch, and runs are looked at in parallel: hundreds in a bucket take seconds.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from aae_dist.config import schema, yaml
from aae_dist.errors import AaeDistError, DataError
from aae_dist.storage import Storage, documents
from aae_dist.sweeps import folder as sweep_folder
from aae_dist.tracking.metric_log import METRICS, newest_metrics
from aae_dist.training.folder import CONFIG, RUN, SUMMARY, RunRecord, RunState, Summary
from aae_dist.training.lock import KEY, LockOwner

THREADS = 32
SILENT_SECONDS = 60.0
"""A holder elsewhere that gave no sign of life for so long is gone: twice what makes a lock stale,
since the clocks of this machine and of the storage differ."""


@dataclass(frozen=True)
class RunRow:
    """One run, or one sweep, as a listing shows it."""

    name: str
    state: str
    """finished, diverged, interrupted, pruned, failed, running, stopped (its process died), new
    (nothing saved yet), unreadable or sweep."""
    step: int | None = None
    total_steps: int | None = None
    modified: float = 0.0  # when it last wrote, in seconds since 1970
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    num_trials: int = 0  # trials of a sweep
    cause: str | None = None
    """Why it failed or cannot be read, in one line."""
    sweep_state: str | None = None
    """running, finished or interrupted; None for a run."""

    @property
    def age_seconds(self) -> float:
        return max(0.0, time.time() - self.modified)


def list_runs(storage: Storage) -> list[RunRow]:
    """Return the runs and sweeps directly in a folder, or the one that the folder is, by name."""
    name = storage.uri.rsplit("/", 1)[-1]
    if (own := _sweep_row(storage, name) or _run_row(storage, name)) is not None:
        return [own]
    with ThreadPoolExecutor(THREADS) as pool:
        rows = pool.map(lambda name: _read_row(storage, name), storage.folders())
        return [row for row in rows if row is not None]


def _read_row(storage: Storage, name: str) -> RunRow | None:
    """Return a row, None if the folder holds no run; what cannot be read costs this row only."""
    try:
        run = storage.child(name)
        return _sweep_row(run, name) or _run_row(run, name)
    except (AaeDistError, OSError) as error:
        return RunRow(name, "unreadable", cause=str(error))


def _sweep_row(run: Storage, name: str) -> RunRow | None:
    # First of all: a sweep's folder has a lock, too, but no run's summary.
    if (found := run.stat(sweep_folder.SWEEP)) is None:
        return None
    problems = list[str]()
    document = _document(run, sweep_folder.SWEEP, sweep_folder.SweepDocument, problems)
    return RunRow(
        name,
        "sweep",
        modified=found.modified,
        num_trials=len(run.folders(sweep_folder.TRIALS)),
        cause=next(iter(problems), None),
        sweep_state=_sweep_state(document),
    )


def _sweep_state(document: sweep_folder.SweepDocument | None) -> str | None:
    if document is None:
        return None
    if document.state != "running":
        return document.state
    return "running" if document.age_seconds() < sweep_folder.SILENT_SECONDS else "interrupted"


def _run_row(run: Storage, name: str) -> RunRow | None:
    problems = list[str]()
    lock = _document(run, KEY, LockOwner, problems)
    summary = _document(run, SUMMARY, Summary, problems)
    # The summary has it as JSON: YAML takes 10 ms per run.
    config = (summary.config if summary else {}) or _config(run, problems)
    if lock is None and summary is None and not config:
        return RunRow(name, "unreadable", cause=problems[0]) if problems else None
    stats = {key: run.stat(key) for key in (KEY, SUMMARY, METRICS, CONFIG)}
    modified = {key: entry.modified for key, entry in stats.items() if entry}
    state = _state(lock, summary, modified.get(KEY, 0.0))
    if state in ("running", "stopped") or summary is None:
        metrics = newest_metrics(run)
        step = int(metrics.pop("step", 0) or 0) or None
        state = "new" if state == "stopped" and step is None else state
    else:
        metrics, step = dict(summary.metrics), summary.step
    return RunRow(
        name,
        state,
        step,
        _total_steps(_document(run, RUN, RunRecord, problems), state, config, metrics, step),
        max(modified.values(), default=0.0),
        metrics,
        config,
        cause=_cause(state, summary) or next(iter(problems), None),
    )


def _state(lock: LockOwner | None, summary: Summary | None, heartbeat: float) -> str:
    if lock is not None and not lock.released:
        if lock.is_of_this_kernel():
            return "running" if lock.is_alive() else "stopped"
        return "running" if time.time() - heartbeat < SILENT_SECONDS else "stopped"
    if summary is not None:
        return summary.state.value
    # Every other end of a process that releases its lock leaves a summary.
    return "stopped" if lock is None else RunState.FAILED.value


def _cause(state: str, summary: Summary | None) -> str | None:
    if state != RunState.FAILED:
        return None
    return (summary and summary.cause) or "it ended by an error; its log says which"


def _total_steps(
    record: RunRecord | None,
    state: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    step: int | None,
) -> int | None:
    """Return the last step; for runs of older versions with a plan in epochs, an estimate."""
    if state == RunState.FINISHED:
        return step
    if record is not None:
        return record.total_steps
    train = config.get("train")
    plan = train if isinstance(train, dict) else {}
    steps, epochs, done = plan.get("steps"), plan.get("epochs"), metrics.get("epoch")
    if type(steps) is int:
        return steps
    if type(epochs) is not int or not done or not step:
        return None
    return max(step, round(step / float(done) * epochs))


D = TypeVar("D", bound=BaseModel)


def _document(run: Storage, key: str, kind: type[D], problems: list[str]) -> D | None:
    """Return a document, None if it is absent or damaged, which `problems` then says."""
    try:
        return documents.read_document(
            run,
            key,
            kind,
            documents.MAX_SWEEP_BYTES if key == sweep_folder.SWEEP else documents.MAX_BYTES,
        )
    except DataError as error:
        problems.append(str(error))
        return None


def _config(run: Storage, problems: list[str]) -> Mapping[str, Any]:
    try:
        text = run.read_range(CONFIG, 0, yaml.LARGEST_BYTES + 1).decode()
        tree = schema.plain(yaml.parse(text, CONFIG, number_lines=False))
    except FileNotFoundError:
        return {}
    except (yaml.YamlProblem, UnicodeDecodeError) as error:
        problems.append(f"{run.uri}/{CONFIG} is damaged: {error}")
        return {}
    return tree if isinstance(tree, dict) else {}
