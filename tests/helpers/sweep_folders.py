"""Folders of sweeps as `aae-dist tune` leaves them, their trials really trained in this process."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.runs import TINY

from aae_dist.config import load_config
from aae_dist.launch.local import launch_local


@dataclass
class Trial:
    """One trial to be written: `steps` > 0 trains it; `told` overrides what trial.json says."""

    parameters: Mapping[str, Any]
    steps: int = 0
    state: str = "finished"
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:12]


def write_sweep(folder: Path, trials: Sequence[Trial], **told: Any) -> Path:
    """Write a sweep's folder and train those of its trials that have steps; return the folder."""
    now = datetime.now(UTC).isoformat()
    planned = [{"id": t.id, "number": i, "parameters": t.parameters} for i, t in enumerate(trials)]
    space = {key: {"grid": []} for t in trials for key in t.parameters}
    document = {
        "version": 1, "name": folder.name, "state": "finished", "started_at": now,
        "updated_at": now, "seconds": 61.0, "metric": "prior_match/c2st", "mode": "min",
        "space": space, "search": {"kind": "grid"}, "scheduler": {"kind": "none"},
        "num_trials": len(trials), "max_concurrent": 2, "trials": planned, "counts": {},
        "best": None,
    }  # fmt: skip
    for place, trial in zip(planned, trials, strict=True):
        _write_trial(folder / "trials" / trial.id, place, trial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({**document, **told}))
    return folder


def _write_trial(run: Path, place: Mapping[str, Any], trial: Trial) -> None:
    if trial.state == "waiting":
        return
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    if trial.steps:
        metrics = _train(run, trial)
    document = {
        **place, "values": trial.parameters, "state": trial.state, "cause": None,
        "step": trial.steps, "seconds": round(time.monotonic() - started, 2), "workers": 1,
        "resources": {"CPU": 1}, "metrics": metrics, "lineage": [],
    }  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    (run / "trial.json").write_text(json.dumps({**document, **trial.told}))


def _train(run: Path, trial: Trial) -> dict[str, float]:
    swept = [f"{key}={json.dumps(value)}" for key, value in trial.parameters.items()]
    own = [f"run.name={run.name}", f"run.storage={run.parent}", f"train.steps={trial.steps}"]
    return launch_local(load_config([], [*TINY, "launch.kind=local", *own, *swept]).config).metrics
