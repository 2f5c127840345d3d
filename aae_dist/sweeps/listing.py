"""What stands in a folder of runs: each run's state, step and metrics, from a few small files.

Nothing here imports torch, and runs are looked at in parallel: hundreds in a bucket take seconds.
"""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from aae_dist.config.schema import plain
from aae_dist.config.yaml import YamlProblem, parse
from aae_dist.storage import Entry, Storage
from aae_dist.tracking.sinks import parse_records
from aae_dist.training.folder import CONFIG, METRICS, SUMMARY
from aae_dist.training.lock import KEY, LockOwner

THREADS = 32
TAIL_BYTES = 256 << 10  # end of metrics.jsonl that is read: some 500 log points
SILENT_SECONDS = 60.0
"""A holder elsewhere that gave no sign of life for so long is gone: twice what makes a lock stale,
since the clocks of this machine and of the storage differ."""
SWEEP, TRIALS = "sweep.json", "trials"


@dataclass(frozen=True)
class RunRow:
    """One run, or one sweep, as a listing shows it."""

    name: str
    state: str
    """finished, diverged, interrupted, pruned, running, stopped (its process died), new (nothing
    saved yet) or sweep."""
    step: int | None = None
    total_steps: int | None = None
    modified: float = 0.0  # when it last wrote, in seconds since 1970
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    num_trials: int = 0  # trials of a sweep

    @property
    def age_seconds(self) -> float:
        return max(0.0, time.time() - self.modified)


def list_runs(storage: Storage) -> list[RunRow]:
    """Return the runs and sweeps directly in a folder, or the one that the folder is, by name."""
    own = _read_row(storage, storage.uri.rsplit("/", 1)[-1])
    if own is not None:
        return [own]
    names = storage.folders()
    with ThreadPoolExecutor(THREADS) as pool:
        rows = pool.map(lambda name: _read_row(storage.child(name), name), names)
        return [row for row in rows if row is not None]


def _read_row(run: Storage, name: str) -> RunRow | None:
    lock, summary = _holder(run), _json(run, SUMMARY)
    # The summary has it as JSON: YAML takes 10 ms per run.
    config = summary.get("config") or _config(run)
    if lock is None and not summary and not config:
        if (sweep := run.stat(SWEEP)) is None:
            return None
        trials = len(run.folders(TRIALS))
        return RunRow(name, "sweep", modified=sweep.modified, num_trials=trials)
    stats = {key: run.stat(key) for key in (KEY, SUMMARY, METRICS, CONFIG)}
    modified = {key: entry.modified for key, entry in stats.items() if entry}
    state = _state(lock, summary, modified.get(KEY, 0.0))
    if state in ("running", "stopped") or not summary:
        metrics = _tail(run, stats[METRICS])
        step = int(metrics.pop("step", 0) or 0) or None
        state = "new" if state == "stopped" and step is None else state
    else:
        metrics, step = dict(summary.get("metrics", {})), summary.get("step")
    total = _total_steps(config, metrics, step)
    return RunRow(name, state, step, total, max(modified.values(), default=0.0), metrics, config)


def _state(lock: LockOwner | None, summary: Mapping[str, Any], heartbeat: float) -> str:
    if lock is not None and not lock.released:
        if lock.is_of_this_kernel():
            return "running" if lock.is_alive() else "stopped"
        return "running" if time.time() - heartbeat < SILENT_SECONDS else "stopped"
    return str(summary.get("state", "stopped"))


def _total_steps(
    config: Mapping[str, Any], metrics: Mapping[str, Any], step: int | None
) -> int | None:
    """Return the planned steps; of a plan in epochs, from the steps per epoch so far."""
    train = config.get("train", {})
    steps, epochs, done = train.get("steps"), train.get("epochs"), metrics.get("epoch")
    if isinstance(steps, int):
        return steps
    return round(step / float(done) * int(epochs)) if epochs and done and step else None


def _holder(run: Storage) -> LockOwner | None:
    try:
        return LockOwner.model_validate_json(run.read(KEY))
    except (FileNotFoundError, ValidationError):
        return None


def _json(run: Storage, key: str) -> Mapping[str, Any]:
    try:
        document = json.loads(run.read(key))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _config(run: Storage) -> Mapping[str, Any]:
    try:
        tree = plain(parse(run.read(CONFIG).decode(), CONFIG, number_lines=False))
    except (FileNotFoundError, YamlProblem, UnicodeDecodeError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _tail(run: Storage, entry: Entry | None) -> dict[str, Any]:
    """Return the newest value of each metric in the end of metrics.jsonl."""
    if entry is None:
        return {}
    start = max(0, entry.size - TAIL_BYTES)
    newest: dict[str, Any] = {}
    for record in parse_records(run.read_range(METRICS, start, entry.size - start)):
        newest |= record
    return newest
