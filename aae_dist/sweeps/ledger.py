"""The driver's book of a sweep: the state of every trial, written to the folder as it changes."""

import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aae_dist.config import dump_yaml
from aae_dist.config.sweep_plan import SweepPlan, TrialPlan, describe
from aae_dist.errors import LaunchError
from aae_dist.objective import Objective, is_comparable, ranking, usual_num_samples
from aae_dist.storage import Storage
from aae_dist.sweeps.folder import BEST, READERS, STATES, SWEEP, TRIAL, TRIALS, read_json
from aae_dist.tracking.json_lines import finite

WRITE_SECONDS = 10.0
"""Longest time that a running trial's progress stays unwritten."""
FINAL = ("finished", "pruned", "failed")
DIVERGED = "TrainingDivergedError"


@dataclass
class Entry:
    """One trial in the book; its fields but `plan` and `started` are those of trial.json."""

    plan: TrialPlan
    state: str = "waiting"
    cause: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] | None = None
    """What Optuna chose, by its own names."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    """Of earlier attempts; the running one counts from `started`."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    started: float | None = None
    written: float = 0.0
    crashes: int = 0
    """Times that its process died since this start."""

    @property
    def step(self) -> int:
        """Steps done, as far as the driver was told."""
        return int(self.metrics.get("step") or 0)

    def cost(self) -> float:
        """Return the seconds over all attempts, the running one included."""
        return self.seconds + (time.monotonic() - self.started if self.started else 0.0)

    def document(self) -> dict[str, Any]:
        """Return what trial.json holds."""
        plan = self.plan
        return {
            **{"id": plan.id, "number": plan.number, "parameters": plan.parameters},
            **{"values": self.values or plan.parameters, "draws": self.draws},
            **{"state": self.state, "cause": self.cause, "step": self.step},
            **{"seconds": round(self.cost(), 3), "workers": plan.config.launch.most_workers},
            **{"metrics": self.metrics, "lineage": self.lineage},
        }


class Ledger:
    """All trials of a sweep; methods may be called from any thread."""

    def __init__(self, plan: SweepPlan, folder: Storage) -> None:
        """Open the book of an earlier start, or a new one; the caller holds the sweep's lock."""
        self.plan, self.folder = plan, folder
        self.objective = Objective.of(plan.sweep.metric, plan.sweep.mode)
        self.entries: dict[str, Entry] = {}
        self._guard = threading.RLock()
        self._began, self._written = time.monotonic(), 0.0
        self._owed: set[str] = set()
        """Trials whose files are older than what is known of them."""
        self._problem = ""
        before = read_json(folder, SWEEP) or {}
        self._started_at = before.get("started_at") or _now()
        self._seconds_before = float(before.get("seconds", 0.0))
        self._best: str | None = None
        known = {trial["id"]: trial for trial in before.get("trials", [])}
        trials = plan.trials or [plan.trial(t["parameters"], t["number"]) for t in known.values()]
        with ThreadPoolExecutor(READERS, thread_name_prefix="read-trials") as pool:
            entries = pool.map(self._read, trials)
            self.entries = {entry.plan.id: entry for entry in entries}

    def _read(self, trial: TrialPlan) -> Entry:
        entry = Entry(trial)
        folder = self.folder.child(TRIALS).child(trial.id)
        own, summary = read_json(folder, TRIAL), read_json(folder, "summary.json")
        if own is not None:
            entry.values, entry.draws, entry.lineage = own["values"], own["draws"], own["lineage"]
            entry.state, entry.cause = own["state"], own["cause"]
            entry.seconds, entry.metrics = own["seconds"], own["metrics"]
        if summary is not None and summary["state"] == "finished" and _same_end(summary, trial):
            # The driver may have died before it heard of it.
            entry.state, entry.cause, entry.metrics = "finished", None, summary["metrics"]
        elif entry.state != "waiting" and not _stays(entry):
            entry.state, entry.cause = "interrupted", None
        return entry

    def add(self, trial: TrialPlan, draws: dict[str, Any] | None = None) -> Entry:
        """Add a trial that the search has just proposed."""
        with self._guard:
            self.entries[trial.id] = Entry(trial, draws=draws)
            self._write_trial(self.entries[trial.id])  # its draws must outlive this driver
            return self.entries[trial.id]

    def start(self, name: str) -> None:
        """Note that a trial holds its workers from now on."""
        with self._guard:
            entry = self.entries[name]
            entry.seconds = entry.cost()
            entry.state, entry.cause, entry.started = "running", None, time.monotonic()
            self._write_trial(entry)

    def hear(self, name: str, metrics: Mapping[str, float], values: Mapping[str, Any]) -> None:
        """Take the newest metrics of a running trial, and its parameters as they are now."""
        with self._guard:
            entry = self.entries[name]
            entry.metrics |= finite(metrics)
            changed = dict(values) != (entry.values or entry.plan.parameters)
            entry.values = dict(values)
            if changed or time.monotonic() - entry.written > WRITE_SECONDS:
                self._write_trial(entry)

    def take_over(self, name: str, event: dict[str, Any]) -> None:
        """Note that a trial goes on from another one's state (PBT)."""
        with self._guard:
            self.entries[name].lineage.append(event)
            self._write_trial(self.entries[name])

    def end(self, name: str, state: str, cause: str | None = None) -> None:
        """Note how a trial ended, and that it holds no workers any more."""
        with self._guard:
            entry = self.entries[name]
            entry.seconds, entry.started = entry.cost(), None
            entry.state, entry.cause = state, cause
            self._write_trial(entry)
            if state == "finished":
                self._write_best()

    def crashed(self, name: str, cause: str) -> None:
        """Note that a trial's process died; it will be started again."""
        with self._guard:
            entry = self.entries[name]
            entry.seconds, entry.started = entry.cost(), None
            entry.crashes, entry.cause = entry.crashes + 1, cause

    def pause(self, name: str) -> None:
        """Note that a running trial has given up its workers for a while."""
        with self._guard:
            entry = self.entries[name]
            if entry.state == "running":
                entry.seconds, entry.started = entry.cost(), None
                entry.state = "waiting"
                self._write_trial(entry)

    def ranked(self) -> list[Entry]:
        """Return the finished trials that have a score, best first."""
        with self._guard:
            finished = [e for e in self.entries.values() if e.state == "finished"]
        return [finished[i] for i in ranking(self.objective, [e.metrics for e in finished])]

    def is_comparable(self, metrics: Mapping[str, float | None]) -> bool:
        """Return whether a score is of as many samples as most trials' are."""
        with self._guard:
            usual = usual_num_samples(e.metrics for e in self.entries.values())
        return is_comparable(self.objective.metrics, metrics, usual)

    def of(self, *states: str) -> list[Entry]:
        """Return the trials in any of these states, by number."""
        with self._guard:
            found = [e for e in self.entries.values() if e.state in states]
        return sorted(found, key=lambda entry: entry.plan.number)

    def todo(self) -> list[Entry]:
        """Return the known trials that have not come to an end."""
        return self.of(*(state for state in STATES if state not in FINAL))

    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state; those not yet proposed are waiting."""
        counts = {state: len(self.of(state)) for state in STATES}
        counts["waiting"] += max(0, self.plan.num_trials - len(self.entries))
        return counts

    def write(self, state: str = "running", force: bool = True) -> None:
        """Write sweep.json, at most every few seconds unless forced to.

        Raises:
            LaunchError: nothing can be written and `force` is set; without, `take_problem` tells.
        """
        with self._guard:
            if not force and time.monotonic() - self._written < WRITE_SECONDS:
                return
            self._written = time.monotonic()
            for name in sorted(self._owed):
                self._write_trial(self.entries[name])
            self._write_best()
            text = json.dumps(self._document(state), indent=1, allow_nan=False)
        try:
            self.folder.write(SWEEP, text.encode())
        except (LaunchError, OSError) as error:
            if force:
                raise
            self._problem = str(error)

    def _document(self, state: str) -> dict[str, Any]:
        sweep, entries = self.plan.sweep, self.entries.values()
        ranked = self.ranked()
        best = ranked[0] if ranked else None
        told = sweep.model_dump(mode="json", include={"name", "metric", "mode", "space"})
        told |= sweep.model_dump(mode="json", include={"search", "scheduler", "max_concurrent"})
        seconds = self._seconds_before + time.monotonic() - self._began
        return {
            **{"version": 1, "state": state, **told, "num_trials": self.plan.num_trials},
            **{"started_at": self._started_at, "updated_at": _now(), "seconds": round(seconds, 3)},
            "counts": self.counts(),
            "best": best and {"id": best.plan.id, "values": self.objective.values(best.metrics)},
            "trials": [_listed(entry.plan) for entry in entries],
        }

    def take_problem(self) -> str:
        """Return why something could not be written since the last call, or nothing."""
        with self._guard:
            problem, self._problem = self._problem, ""
        return problem

    def _write_trial(self, entry: Entry) -> None:
        entry.written = time.monotonic()
        text = json.dumps(entry.document(), indent=1, allow_nan=False)
        try:
            self.folder.child(TRIALS).child(entry.plan.id).write(TRIAL, text.encode())
        except (LaunchError, OSError) as error:
            # Trials train on without storage for a while, so the sweep does too.
            self._owed.add(entry.plan.id)
            self._problem = str(error)
        else:
            self._owed.discard(entry.plan.id)

    def _write_best(self) -> None:
        best = next(iter(self.ranked()), None)
        if best is None or best.plan.id == self._best:
            return
        head = (
            f"# The best finished trial of the sweep {self.plan.sweep.name}: "
            f"{describe(best.values or best.plan.parameters)}\n"
            f"# ({self.objective}; trials/{best.plan.id}). To train it on its own:\n"
            f"#   aae-dist train {self.folder.uri}/{BEST}\n"
        )
        try:
            self.folder.write(BEST, (head + dump_yaml(self.plan.winner(best.plan))).encode())
        except (LaunchError, OSError) as error:
            self._problem = str(error)
        else:
            self._best = best.plan.id


def _listed(plan: TrialPlan) -> dict[str, Any]:
    return {"id": plan.id, "number": plan.number, "parameters": plan.parameters}


def _stays(entry: Entry) -> bool:
    """Return whether an ended trial is not tried again: what diverged would diverge again."""
    if entry.state == "failed":
        return (entry.cause or "").startswith(DIVERGED)
    return entry.state == "pruned"


def _same_end(summary: Mapping[str, Any], trial: TrialPlan) -> bool:
    plan, train = summary["config"]["train"], trial.config.train
    return (plan["steps"], plan["epochs"]) == (train.steps, train.epochs)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
