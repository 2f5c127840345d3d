"""In-memory state of all trials of a sweep, persisted asynchronously."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from aae_dist.config import dump_yaml, metric_names
from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import Storage, documents
from aae_dist.sweeps import folder as files
from aae_dist.sweeps.folder import STATES, SweepState, TrialState
from aae_dist.sweeps.objective import PARETO_PICK, Objective, ranking, usual_basis
from aae_dist.sweeps.plan import SweepPlan, TrialPlan, describe
from aae_dist.sweeps.recommendation import SEED, Recommendation, ScoredTrial, recommend
from aae_dist.tracking.sinks import finite
from aae_dist.training.folder import SUMMARY, RunState, Summary

WRITE_SECONDS = 10.0  # longest time that a running trial's progress stays unwritten
FINAL = (TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED)
DIVERGED = "TrainingDivergedError"


class AsyncWriter:
    """Writes dirty files in the order in which they were marked, each with its newest content.

    Methods may be called from any thread. The end of the process waits for dirty files.
    """

    def __init__(self, folder: Storage, content: Callable[[str], bytes | None]) -> None:
        """Write to `folder` what `content` returns for a key in its turn; None for nothing."""
        self._folder, self._content = folder, content
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="async-writer")
        self._dirty: dict[str, None] = {}  # a set that keeps its order
        self._failed: dict[str, LaunchError | OSError] = {}
        self._pending: Future[None] | None = None
        self._is_writing, self._problem = False, ""
        self._fault: Exception | None = None

    def mark_dirty(self, *keys: str) -> None:
        """Mark files dirty. A file that is already queued keeps its position."""
        with self._lock:
            self._dirty |= dict.fromkeys(keys)
            if self._dirty and not self._is_writing:
                self._is_writing = True
                self._pending = self._thread.submit(self._write_all)

    def retry_failed(self) -> None:
        """Try again what could not be written; raise what `content` raised."""
        if self._fault is not None:
            raise self._fault
        with self._lock:
            failed = tuple(self._failed)
        self.mark_dirty(*failed)

    def flush(self) -> None:
        """Return when no file is dirty: written or failed; raise what `content` raised."""
        if self._pending is not None:
            self._pending.result()
        if self._fault is not None:
            raise self._fault

    def failure(self, key: str) -> LaunchError | OSError | None:
        return self._failed.get(key)

    def pop_error(self) -> str:
        with self._lock:
            problem, self._problem = self._problem, ""
        return problem

    def _write_all(self) -> None:
        while True:
            with self._lock:
                if not self._dirty:
                    self._is_writing = False
                    return
                key = next(iter(self._dirty))
                del self._dirty[key]
            try:
                self._write(key)
            except Exception as error:  # noqa: BLE001  # It is raised again where it is seen.
                self._fault = error

    def _write(self, key: str) -> None:
        data = self._content(key)
        try:
            if data is not None:
                self._folder.write(key, data)
        except (LaunchError, OSError) as error:
            with self._lock:
                self._failed[key], self._problem = error, str(error)
        else:
            with self._lock:
                self._failed.pop(key, None)


@dataclass
class Entry:
    """One trial in the ledger; its fields but `plan` and `started` are those of trial.json."""

    plan: TrialPlan
    state: TrialState = TrialState.WAITING
    cause: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] | None = None  # what Optuna chose, by its own names
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0  # of earlier attempts; the running one counts from `started`
    lineage: list[dict[str, Any]] = field(default_factory=list)
    started: float | None = None
    written: float = 0.0
    restarts: int = 0  # times that its process failed and was started again

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as they are now: PBT changes them."""
        return self.values or self.plan.parameters

    @property
    def step(self) -> int:
        return int(self.metrics.get("step") or 0)

    def cost(self) -> float:
        """Return the seconds over all attempts, the running one included."""
        return self.seconds + (time.monotonic() - self.started if self.started else 0.0)

    def listed(self) -> dict[str, Any]:
        plan = self.plan
        listed = {"id": plan.id, "number": plan.number, "parameters": plan.parameters}
        return listed | ({"added": True} if plan.is_added else {})

    def document(self) -> dict[str, Any]:
        plan = self.plan
        return {
            **self.listed(),
            **{"values": self.parameters, "draws": self.draws},
            **{"state": self.state, "cause": self.cause, "step": self.step},
            **{"seconds": round(self.cost(), 3), "workers": plan.config.launch.most_workers},
            **{"metrics": self.metrics, "lineage": self.lineage, "restarts": self.restarts},
        }


class Ledger:
    """All trials of a sweep; methods may be called from any thread."""

    def __init__(self, plan: SweepPlan, folder: Storage) -> None:
        """Load the trials of an earlier start, or none; the caller holds the sweep's lock."""
        self.folder = folder
        self.objective = Objective.from_config(
            plan.sweep.metric, plan.sweep.mode, plan.sweep.constraints
        )
        self.entries: dict[str, Entry] = {}
        self._guard = threading.RLock()
        self._began, self._written = time.monotonic(), 0.0
        self._state: SweepState = "running"
        self._writer = AsyncWriter(folder, self._content)
        before = documents.read_document(
            folder, files.SWEEP, files.SweepDocument, documents.MAX_SWEEP_BYTES
        )
        self._started_at = before.started_at if before else _now()
        self._seconds_before = before.seconds if before else 0.0
        self._best: str | None = None
        known = {trial.id: trial for trial in before.trials} if before else {}
        added = [t for t in known.values() if t.added]
        self.plan = plan = replace(plan, num_added=len(added))
        trials = list(plan.trials) or [
            plan.trial(t.parameters, t.number) for t in known.values() if not t.added
        ]
        first = len(trials)
        trials += [plan.trial(t.parameters, first + n, True) for n, t in enumerate(added)]
        with ThreadPoolExecutor(files.READERS, thread_name_prefix="read-trials") as pool:
            entries = pool.map(self._read, trials)
            self.entries = {entry.plan.id: entry for entry in entries}

    def _read(self, trial: TrialPlan) -> Entry:
        entry = Entry(trial)
        folder = self.folder.child(files.TRIALS).child(trial.id)
        try:
            own = documents.read_document(folder, files.TRIAL, files.TrialDocument)
            summary = documents.read_document(folder, SUMMARY, Summary)
        except DataError as error:  # this trial alone is lost
            entry.state, entry.cause = TrialState.FAILED, f"DataError: {error}"
            return entry
        if own is not None:
            entry.values, entry.draws = own.values, own.draws
            entry.lineage = [event.model_dump() for event in own.lineage]
            entry.state, entry.cause = own.state, own.cause
            entry.seconds, entry.metrics = own.seconds, dict(own.metrics)
            entry.restarts = own.restarts
        # What diverged would diverge again.
        diverged = (entry.cause or "").startswith(DIVERGED) and entry.state == TrialState.FAILED
        train = trial.config.train
        is_done = summary is not None and summary.state == RunState.FINISHED
        if summary and is_done and summary.plan == (train.steps, train.epochs):
            # The driver may have died before it received the result.
            entry.state, entry.cause = TrialState.FINISHED, None
            entry.metrics = dict(summary.metrics)
        elif entry.state not in (TrialState.WAITING, TrialState.PRUNED) and not diverged:
            entry.state, entry.cause = TrialState.INTERRUPTED, None
        return entry

    def add(self, trial: TrialPlan, draws: dict[str, Any] | None = None) -> Entry:
        with self._guard:
            self.entries[trial.id] = Entry(trial, draws=draws)
            self._mark_dirty(self.entries[trial.id])  # its draws must outlive this driver
            return self.entries[trial.id]

    def add_seeds(self, wanted: Sequence[tuple[Mapping[str, Any], int]]) -> list[Entry]:
        """Add trials: of each parameters so many seeds, those after the highest one so far."""
        with self._guard:
            new = []
            for parameters, count in wanted:
                seeds = [
                    int(entry.parameters.get(SEED, entry.plan.config.run.seed))
                    for entry in self.entries.values()
                    if {k: v for k, v in entry.parameters.items() if k != SEED} == dict(parameters)
                ]
                for number in range(count):
                    seeded = {**parameters, SEED: max(seeds, default=-1) + 1 + number}
                    trial = self.plan.trial(seeded, len(self.entries), is_added=True)
                    self.plan = replace(self.plan, num_added=self.plan.num_added + 1)
                    new.append(self.add(trial))
            return new

    def start(self, name: str) -> None:
        with self._guard:
            entry = self.entries[name]
            entry.seconds = entry.cost()
            entry.state, entry.cause = TrialState.RUNNING, None
            entry.started = time.monotonic()
            self._mark_dirty(entry)

    def update(self, name: str, metrics: Mapping[str, float], values: Mapping[str, Any]) -> None:
        with self._guard:
            entry = self.entries[name]
            entry.metrics |= finite(metrics)
            changed = dict(values) != entry.parameters
            entry.values = dict(values)
            if changed or time.monotonic() - entry.written > WRITE_SECONDS:
                self._mark_dirty(entry)

    def exploit(self, name: str, event: dict[str, Any]) -> None:
        with self._guard:
            self.entries[name].lineage.append(event)
            self._mark_dirty(self.entries[name])

    def finish(self, name: str, state: TrialState, cause: str | None = None) -> None:
        with self._guard:
            entry = self.entries[name]
            entry.seconds, entry.started = entry.cost(), None
            entry.state, entry.cause = state, cause
            self._mark_dirty(entry)
            if state == TrialState.FINISHED:
                self._writer.mark_dirty(files.BEST)

    def crashed(self, name: str, cause: str) -> None:
        with self._guard:
            entry = self.entries[name]
            entry.seconds, entry.started = entry.cost(), None
            entry.restarts, entry.cause = entry.restarts + 1, cause
            self._mark_dirty(entry)

    def pause(self, name: str) -> None:
        with self._guard:
            entry = self.entries[name]
            if entry.state == TrialState.RUNNING:
                entry.seconds, entry.started = entry.cost(), None
                entry.state = TrialState.WAITING
                self._mark_dirty(entry)

    def ranked(self) -> list[Entry]:
        """Return the finished trials that have a score, best first."""
        with self._guard:
            finished = [e for e in self.entries.values() if e.state == TrialState.FINISHED]
        return [finished[i] for i in ranking(self.objective, [e.metrics for e in finished])]

    def recommendation(self) -> Recommendation:
        """Return the answer of the sweep as far as it has come."""
        finished = self.in_state(TrialState.FINISHED)
        trials = [ScoredTrial(e.plan.number, e.parameters, e.metrics) for e in finished]
        return recommend(self.objective, trials)

    def is_comparable(self, metrics: Mapping[str, float | None]) -> bool:
        """Return whether a score is of the number of samples and features of most trials."""
        with self._guard:
            usual = usual_basis(e.metrics for e in self.entries.values())
        return metric_names.is_comparable(self.objective.inputs, metrics, usual)

    def in_state(self, *states: TrialState) -> list[Entry]:
        with self._guard:
            found = [e for e in self.entries.values() if e.state in states]
        return sorted(found, key=lambda entry: entry.plan.number)

    def pending(self) -> list[Entry]:
        """Return the known trials that have not come to an end."""
        return self.in_state(*(state for state in STATES if state not in FINAL))

    def in_start_order(self) -> list[Entry]:
        """Return the pending trials in the order in which they start."""
        if self.plan.sweep.scheduler.kind != "asha":
            return self.pending()
        # By their hash: in a grid's own order each trial may be better than all before it, and none
        # would be stopped (5 of 16 with rates in ascending order).
        return sorted(self.pending(), key=lambda entry: entry.plan.id)

    def counts(self) -> dict[TrialState, int]:
        """Return how many trials are in each state; those not yet proposed are waiting."""
        counts = {state: len(self.in_state(state)) for state in STATES}
        counts[TrialState.WAITING] += max(0, self.plan.num_trials - len(self.entries))
        return counts

    def write(self, state: SweepState = "running", force: bool = True) -> None:
        """Write sweep.json, at most every few seconds unless forced to.

        Forced, it returns when that and all trials are written, or raises LaunchError if nothing
        can be; else it waits for nothing, and `pop_error` tells.
        """
        with self._guard:
            if not force and time.monotonic() - self._written < WRITE_SECONDS:
                return
            self._written, self._state = time.monotonic(), state
        if force:
            self.flush()  # what fails in it is tried once more
        self._writer.retry_failed()
        self._writer.mark_dirty(files.BEST, files.SWEEP)
        if force:
            self.flush()
            if (failure := self._writer.failure(files.SWEEP)) is not None:
                raise failure

    def flush(self) -> None:
        self._writer.flush()

    def pop_error(self) -> str:
        return self._writer.pop_error()

    def _mark_dirty(self, entry: Entry) -> None:
        entry.written = time.monotonic()
        self._writer.mark_dirty(f"{files.TRIALS}/{entry.plan.id}/{files.TRIAL}")

    def _content(self, key: str) -> bytes | None:
        """Return a file as it is to be now; in the writer's thread."""
        with self._guard:
            if key == files.BEST:
                return self._best_yaml()
            is_sweep, name = key == files.SWEEP, key.split("/")[-2:][0]
            document = self._document() if is_sweep else self.entries[name].document()
            return json.dumps(document, indent=1, allow_nan=False).encode()

    def _document(self) -> dict[str, Any]:
        sweep, entries = self.plan.sweep, self.entries.values()
        best = next(iter(self.ranked()), None)
        section = sweep.model_dump(mode="json", include={"name", "metric", "mode", "constraints"})
        section |= sweep.model_dump(mode="json", include={"space", "search", "scheduler"})
        section["max_concurrent"] = sweep.max_concurrent
        seconds = self._seconds_before + time.monotonic() - self._began
        return {
            **{"version": 1, "state": self._state, **section, "num_trials": self.plan.num_trials},
            **{"started_at": self._started_at, "updated_at": _now(), "seconds": round(seconds, 3)},
            **{"counts": self.counts(), "restarts": sum(entry.restarts for entry in entries)},
            "best": best and {"id": best.plan.id, "values": self.objective.values(best.metrics)},
            "recommendation": self.recommendation().document(),
            "trials": [entry.listed() for entry in entries],
        }

    def _reason(self, best: Entry) -> str:
        """Return why this trial was picked: of a Pareto front none is the best in all metrics."""
        if not self.objective.is_kept(best.metrics):
            return f"{self.objective}: no trial keeps that, and this one is the nearest"
        if not self.objective.is_pareto:
            return str(self.objective)
        values = self.objective.values(best.metrics) or ()
        scores = zip(self.objective.metrics, self.objective.modes, values, strict=True)
        shown = ", ".join(f"{metric} {value:.4g} ({mode})" for metric, mode, value in scores)
        return f"{PARETO_PICK}: {shown}"

    def _best_yaml(self) -> bytes | None:
        best = next(iter(self.ranked()), None)
        if best is None or (best.plan.id == self._best and not self._writer.failure(files.BEST)):
            return None
        self._best = best.plan.id
        one = "One trial" if self.objective.is_pareto else "The best finished trial"
        head = (
            f"# {one} of the sweep {self.plan.sweep.name}: "
            f"{best.plan.label}, {describe(best.parameters)}\n"
            f"# ({self._reason(best)}; trials/{best.plan.id}). To train it on its own:\n"
            f"#   aae-dist train {self.folder.uri}/{files.BEST}\n"
        )
        return (head + dump_yaml(self.plan.winner(best.plan))).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
