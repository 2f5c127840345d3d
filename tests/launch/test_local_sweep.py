"""Sweeps in processes of this machine, without Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.arrays import digits, small
from helpers.runs import VALIDATION
from helpers.sweeps import SEEDS, command, finish, start

import aae_dist
from aae_dist.cli import main
from aae_dist.config import load_config
from aae_dist.launch.local_sweep import num_slots
from aae_dist.storage import open_storage
from aae_dist.sweeps import read_sweep

pytestmark = [pytest.mark.run, pytest.mark.timeout(900)]

LOCAL = (SEEDS, "launch.kind=local", "sweep.max_concurrent=2")
SCORED = (
    VALIDATION,
    "sweep.metric=reconstruction/mse",
    "sweep.constraints={prior_match/c2st: 0.4}",
)


def tune(storage: Path, *items: str) -> int:
    return main([*command(storage, *LOCAL, *items)[3:]])


def document(storage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((storage / "sweep" / "sweep.json").read_text())
    return found


def losses(storage: Path) -> list[Any]:
    trials = read_sweep(str(storage / "sweep")).trials
    return [(t.parameters, t.state, t.metrics["loss/reconstruction"]) for t in trials]


def workers_of(process: "subprocess.Popen[bytes]") -> list[int]:
    found = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if b"local_trial" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def wait_for(found: Any, log: Path, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return value


def test_a_sweep_runs_recommends_takes_more_seeds_and_is_then_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("sweep.space.run.seed=null", "sweep.space.model.latent_dim={grid: [2, 3]}")
    items = (*SCORED, *sizes, "train.steps=20")
    assert tune(tmp_path, *items) == 0
    out = capsys.readouterr().out
    assert "2 of 2 trials to run, 2 at once in processes of this machine" in out
    assert "None qualifies: no parameters keep prior_match/c2st at most 0.4; nearest are" in out
    found = document(tmp_path)["recommendation"]
    assert (document(tmp_path)["state"], found["state"]) == ("finished", "none_qualifies")
    assert "no trial keeps that" in (tmp_path / "sweep" / "best.yaml").read_text()
    assert found["sentence"] in (tmp_path / "sweep" / "report.html").read_text()
    assert tune(tmp_path, *items) == 0
    assert "This sweep had already finished" in capsys.readouterr().out
    assert tune(tmp_path, *items, "--more") == 0
    assert "2 of 4 trials to run" in capsys.readouterr().out
    trials = read_sweep(str(tmp_path / "sweep")).trials
    size = found["chosen"]["parameters"]["model.latent_dim"]
    assert [t.parameters for t in trials[2:]] == [
        {"model.latent_dim": size, "run.seed": seed} for seed in (1, 2)
    ]
    assert {t.state for t in trials} == {"finished"}


@pytest.mark.slow
def test_a_sweep_whose_processes_are_killed_ends_with_the_numbers_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    longer = (*LOCAL, "train.steps=300", "checkpoint.every_steps=20")
    # A worker dies, then the driver is asked to stop.
    first = start(broken, log, {}, *longer)
    trials = broken / "sweep" / "trials"
    wait_for(lambda: list(trials.glob("*/checkpoints/step-*/MANIFEST.json")), log)
    os.kill(workers_of(first)[0], signal.SIGKILL)
    wait_for(lambda: "starts again: its process died (signal 9)" in log.read_text(), log)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 4, log.read_text()
    assert read_sweep(str(broken / "sweep")).counts()["interrupted"] > 0
    # The driver is killed, and its workers end with it.
    second = start(broken, log, {}, *longer)
    workers = wait_for(lambda: len(found := workers_of(second)) == 2 and found, log)
    wait_for(lambda: '"running"' in (broken / "sweep" / "sweep.json").read_text(), log)
    second.kill()
    second.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), log, 30)
    # The same command ends the sweep.
    finish(start(broken, log, {}, *longer), log)
    finish(start(whole, log, {}, *longer), log)
    assert losses(broken) == losses(whole)
    assert [state for _, state, _ in losses(whole)] == ["finished"] * 4
    best = [(place / "sweep" / "best.yaml").read_text() for place in (whole, broken)]
    assert best[0].replace(str(whole), "") == best[1].replace(str(broken), "")
    sentences = [document(place)["recommendation"] for place in (whole, broken)]
    assert sentences[0] == sentences[1]


def test_a_trial_that_cannot_run_fails_with_its_cause_and_leaves_the_others(tmp_path: Path) -> None:
    priors = "sweep.space.prior={grid: [{kind: gaussian}, {kind: custom, path: 'nowhere:Prior'}]}"
    assert tune(tmp_path, priors, "sweep.space.run.seed=null", "train.steps=20") == 0
    good, bad = read_sweep(str(tmp_path / "sweep")).trials
    assert (good.state, bad.state) == ("finished", "failed")
    assert "nowhere" in str(bad.cause)


def test_a_sweep_from_python_on_samples_in_memory_needs_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aae_dist.tune.sweep", None)  # importing it fails
    space = {"model": {"latent_dim": {"grid": [3]}}}
    sweep = {"name": "sweep", "metric": "loss/reconstruction", "space": space}
    x, _ = digits(200)
    config = small(tmp_path, launch={"kind": "local"}, sweep=sweep)
    found = aae_dist.tune(config, x)
    assert (found.state, [t["state"] for t in found.trials]) == ("finished", ["finished"])
    assert found.run.encode(x[:5]).shape == (5, 3)
    assert aae_dist.tune(config, x).trials == found.trials


def test_asha_and_optuna_run_without_ray(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    items = (
        "sweep.space.run.seed=null",
        "sweep.space.phases.reconstruction.optimizer.lr={loguniform: [1e-7, 1e-2]}",
        *("sweep.search={kind: optuna, startup_trials: 4}", "sweep.num_trials=6"),
        *("sweep.scheduler={kind: asha, grace: 20, reduction_factor: 2}", "train.steps=80"),
    )
    assert tune(tmp_path, *items) == 0
    found = read_sweep(str(tmp_path / "sweep"))
    counts = found.counts()
    assert counts["finished"] + counts["pruned"] == 6
    assert counts["finished"] >= 1
    assert all(t.cause.startswith("stopped by asha at step") for t in found.trials if t.cause)
    assert open_storage(found.uri).size("best.yaml")


def test_as_many_trials_run_at_once_as_cores_and_gpus_allow() -> None:
    items = ["run.name=a", "data.train=builtin://digits/train", "train.steps=1"]
    config = load_config([], [*items, "launch.cpus_per_worker=1"]).config
    wide = load_config([], [*items, "launch.cpus_per_worker=1000"]).config
    cores = len(os.sched_getaffinity(0))
    assert num_slots([config], 0, None) == cores
    assert num_slots([config], 1, None) == 1
    assert num_slots([config], 0, 7) == 7
    assert num_slots([config, wide], 0, None) == 1
