"""The book of a sweep and its readers, on local disk and S3."""

import json
import math
import subprocess
import sys
import threading
import time

import pytest

from aae_dist.config import load_config
from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import open_storage
from aae_dist.storage.local import LocalStorage
from aae_dist.sweeps import folder as sweep_folder, read_sweep
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import load_sweep

SCORE = "reconstruction/mse"


def plan_in(storage, *items):
    base = [
        f"run.storage={storage}",
        "data.train=builtin://digits/train",
        "data.validation=builtin://digits/validation",
        "train.steps=100",
        "launch.workers=1",
        "sweep.name=s",
        "sweep.space.model.latent_dim={grid: [2, 4, 8, 16]}",
        f"sweep.metric={SCORE}",
    ]
    return load_sweep([], [*base, *items])


def open_ledger(plan):
    return Ledger(plan, open_storage(plan.uri))


def finish(ledger, number, score, steps=100):
    """Do what a trial and the driver do when it ends."""
    trial = ledger.plan.trials[number]
    summary = {
        "state": "finished",
        "step": steps,
        "metrics": {"step": steps, SCORE: score},
        "config": trial.config.model_dump(mode="json"),
    }
    run = open_storage(f"{ledger.plan.uri}/trials/{trial.id}")
    run.write("summary.json", json.dumps(summary).encode())
    run.write("metrics.jsonl", json.dumps({"step": steps, SCORE: score}).encode() + b"\n")
    ledger.start(trial.id)
    ledger.update(trial.id, {"step": steps, SCORE: score}, trial.parameters)
    ledger.finish(trial.id, "finished")
    ledger.flush()


def test_restarts_of_trials_are_counted_over_all_starts_of_a_sweep(tmp_path):
    plan = plan_in(tmp_path)
    ledger, name = open_ledger(plan), plan.trials[1].id
    ledger.start(name)
    ledger.write()
    assert json.loads((tmp_path / "s/sweep.json").read_text())["restarts"] == 0
    ledger.crashed(name, "its process died")
    ledger.write()
    again = open_ledger(plan)
    again.crashed(name, "its process died")
    again.write()
    assert json.loads((tmp_path / "s/sweep.json").read_text())["restarts"] == 2
    assert [t.restarts for t in read_sweep(plan.uri).trials] == [0, 2, 0, 0]


def test_what_fails_once_at_the_end_is_written_after_all(tmp_path, monkeypatch):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    write, failed = LocalStorage.write, []

    def failing_once(self, key, data):
        if key.endswith("trial.json") and not failed:
            failed.append(key)
            raise LaunchError("the bucket cannot be reached")
        write(self, key, data)

    monkeypatch.setattr(LocalStorage, "write", failing_once)
    ledger.start(plan.trials[0].id)
    ledger.write("finished")
    assert failed
    assert (tmp_path / "s" / failed[0]).exists()


def test_a_storage_that_is_away_for_a_while_loses_nothing(tmp_path, monkeypatch):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    write, away = LocalStorage.write, True

    def failing(self, key, data):
        if away and not key.endswith("summary.json") and not key.endswith("metrics.jsonl"):
            raise LaunchError("the bucket cannot be reached")
        write(self, key, data)

    monkeypatch.setattr(LocalStorage, "write", failing)
    finish(ledger, 0, 0.5)
    assert ledger.pop_error() == "the bucket cannot be reached"
    monkeypatch.setattr("aae_dist.sweeps.ledger.WRITE_SECONDS", -1.0)
    ledger.write(force=False)
    ledger.flush()
    assert ledger.pop_error()
    with pytest.raises(LaunchError, match="cannot be reached"):
        ledger.write("finished")
    away = False
    ledger.write("finished")
    found = read_sweep(plan.uri)
    assert found.counts()["finished"] == 1
    assert (tmp_path / "s" / "best.yaml").exists()


@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_the_driver_writes_is_what_readers_get(where, tmp_path, request):
    storage = str(tmp_path) if where == "local" else request.getfixturevalue("s3")()
    plan = plan_in(storage)
    ledger = open_ledger(plan)
    finish(ledger, 0, 0.5)
    finish(ledger, 1, 0.25)
    ledger.start(plan.trials[2].id)
    ledger.update(plan.trials[2].id, {"step": 40, SCORE: math.nan}, plan.trials[2].parameters)
    ledger.finish(plan.trials[2].id, "pruned", "stopped by asha at step 40")
    ledger.write("finished")

    found = read_sweep(plan.uri)
    assert found.state == "finished"
    assert found.counts() == dict.fromkeys(sweep_folder.STATES, 0) | {
        "finished": 2,
        "pruned": 1,
        "waiting": 1,
    }
    assert [t.metrics.get(SCORE) for t in found.trials] == [0.5, 0.25, None, None]
    assert [len(t.history) for t in found.trials] == [1, 1, 0, 0]
    assert found.trials[2].cause == "stopped by asha at step 40"
    assert found.trials[2].step == 40
    document = json.loads(open_storage(plan.uri).read("sweep.json"))
    assert document["best"] == {"id": plan.trials[1].id, "values": [0.25]}
    best = open_storage(plan.uri).read("best.yaml").decode()
    assert "latent_dim=4" in best.splitlines()[0]
    if where == "local":
        winner = load_config([tmp_path / "s" / "best.yaml"]).config
        assert winner.model.latent_dim == 4


def test_a_new_start_takes_what_has_ended_from_the_folder(tmp_path):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    finish(ledger, 0, 0.5)
    ledger.start(plan.trials[1].id)
    ledger.finish(plan.trials[1].id, "failed", "TrainingDivergedError: nan")
    ledger.start(plan.trials[2].id)
    ledger.finish(plan.trials[2].id, "failed", "DataError: no shards")
    ledger.start(plan.trials[3].id)  # and the driver dies
    ledger.write("running")

    again = open_ledger(plan)
    assert [e.state for e in again.in_state(*sweep_folder.STATES)] == [
        "finished",
        "failed",
        "interrupted",
        "interrupted",
    ]
    assert [e.plan.number for e in again.pending()] == [2, 3]


def test_a_trial_that_finished_unheard_counts_as_finished(tmp_path):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    ledger.write("running")
    finish(ledger, 0, 0.5)
    trial = open_storage(f"{plan.uri}/trials/{plan.trials[0].id}")
    told = json.loads(trial.read("trial.json"))
    trial.write("trial.json", json.dumps({**told, "state": "running"}).encode())
    assert [e.plan.number for e in open_ledger(plan).in_state("finished")] == [0]


def test_longer_trials_are_not_finished_yet(tmp_path):
    finish(open_ledger(plan_in(tmp_path)), 0, 0.5)
    longer = open_ledger(plan_in(tmp_path, "train.steps=200"))
    assert not longer.in_state("finished")
    assert len(longer.pending()) == 4


def test_a_silent_driver_is_taken_for_dead(tmp_path, monkeypatch):
    ledger = open_ledger(plan_in(tmp_path))
    ledger.start(ledger.plan.trials[0].id)
    ledger.write("running")
    assert read_sweep(ledger.plan.uri).trials[0].state == "running"
    monkeypatch.setattr(sweep_folder, "SILENT_SECONDS", -1.0)
    silent = read_sweep(ledger.plan.uri)
    assert silent.state == silent.trials[0].state == "interrupted"


def test_seconds_add_up_over_attempts(tmp_path):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    name = plan.trials[0].id
    ledger.start(name)
    ledger.entries[name].started -= 30
    ledger.pause(name)
    ledger.entries[name].started = None
    ledger.start(name)
    ledger.entries[name].started -= 12
    ledger.finish(name, "interrupted")
    ledger.flush()
    assert 42 <= read_json(plan, name)["seconds"] < 43


def read_json(plan, name):
    return json.loads(open_storage(plan.uri).read(f"trials/{name}/trial.json"))


def test_a_folder_without_a_sweep_is_told_so(tmp_path):
    with pytest.raises(DataError, match=r"holds no sweep\.json"):
        read_sweep(str(tmp_path))


def test_a_pareto_front_has_its_winner_too(tmp_path):
    plan = plan_in(tmp_path, f"sweep.metric=[{SCORE}, step]", "sweep.mode=[min, max]")
    ledger = open_ledger(plan)
    for number, score in enumerate([0.5, 0.25, 0.3]):
        finish(ledger, number, score)
    ledger.write("finished")
    document = json.loads(open_storage(plan.uri).read("sweep.json"))
    assert document["best"]["values"] == [0.25, 100.0]


def test_nobody_waits_for_a_storage_that_does_not_answer(tmp_path, monkeypatch):
    ledger = open_ledger(plan_in(tmp_path))
    write, answers, written = LocalStorage.write, threading.Event(), []

    def slow(self, key, data):
        assert answers.wait(30)
        written.append(key)
        write(self, key, data)

    monkeypatch.setattr(LocalStorage, "write", slow)
    started = time.monotonic()
    names = [trial.id for trial in ledger.plan.trials]
    for name in names:
        ledger.start(name)
    for step in range(50):
        ledger.update(names[0], {"step": step}, {"model.latent_dim": step})
    monkeypatch.setattr("aae_dist.sweeps.ledger.WRITE_SECONDS", -1.0)
    ledger.write(force=False)
    assert ledger.counts()["running"] == 4
    assert time.monotonic() - started < 25  # the storage answers after 30
    answers.set()
    ledger.write("interrupted")
    files = [f"trials/{name}/trial.json" for name in names]
    assert [key for key in written if key in files[1:]] == files[1:], "in order, each once"
    assert written[-1] == "sweep.json"
    assert read_json(ledger.plan, names[0])["step"] == 49
    assert len(written) <= 7, "the newest state of a trial, not each"


def test_a_fault_of_our_own_in_the_book_ends_the_sweep(tmp_path):
    ledger = open_ledger(plan_in(tmp_path))
    name = ledger.plan.trials[0].id
    ledger.update(name, {"step": 1}, {"model.latent_dim": {1, 2}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        ledger.write()


@pytest.mark.run
def test_all_that_is_owed_is_written_before_the_process_ends(tmp_path):
    code = (
        "import time\n"
        "from aae_dist.storage import open_storage\n"
        "from aae_dist.sweeps.ledger import AsyncWriter\n"
        f"folder = open_storage({str(tmp_path)!r})\n"
        "writer = AsyncWriter(folder, lambda key: time.sleep(0.1) or key.encode())\n"
        "writer.mark_dirty('a', 'b', 'c')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_seeds_that_more_adds_are_trials_of_every_later_start(tmp_path):
    plan = plan_in(tmp_path)
    ledger = open_ledger(plan)
    for number, score in enumerate([0.5, 0.25, 0.3, 0.4]):
        finish(ledger, number, score)
    found = ledger.recommendation()
    added = ledger.add_seeds(found.add)
    assert [entry.parameters for entry in added] == [
        {"model.latent_dim": size, "run.seed": seed} for size in (4, 8) for seed in (1, 2)
    ]
    assert [entry.plan.config.run.seed for entry in added] == [1, 2, 1, 2]
    ledger.write("interrupted")
    again = open_ledger(plan_in(tmp_path))
    assert [e.plan.id for e in again.pending()] == [e.plan.id for e in added]
    assert (again.plan.num_trials, again.counts()["waiting"]) == (8, 4)
    assert again.recommendation() == found
    document = json.loads(open_storage(plan.uri).read("sweep.json"))
    assert document["recommendation"] == json.loads(json.dumps(found.document()))
    assert [len(t.parameters) for t in read_sweep(plan.uri).trials] == [1, 1, 1, 1, 2, 2, 2, 2]
    more = open_ledger(plan_in(tmp_path, "sweep.space.model.latent_dim={grid: [2, 4, 8, 16, 32]}"))
    assert sorted(e.plan.number for e in more.entries.values()) == list(range(9))
