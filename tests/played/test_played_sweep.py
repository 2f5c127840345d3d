"""Sweeps on pods that share nothing but the bucket: each trial is started exactly once."""

import time

import pytest
from helpers.sweeps import attempts, restarts
from helpers.tiny import SMALL

from aae_dist.sweeps import read_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]

LR = {"phases": {"reconstruction": {"optimizer": {"lr": {"grid": [1e-3, 9e-4, 1e-7, 2e-7]}}}}}
ASHA = {"kind": "asha", "grace": 20, "reduction_factor": 2}
SEEDS = {"run": {"seed": {"grid": [0, 1, 2, 3]}}}


def sweep(name, workers=1, space=SEEDS, **more):
    """Return the settings of a sweep of four trials."""
    own = {"name": name, "metric": "loss/reconstruction", "space": space, **more}
    return {**SMALL, "launch": {"workers": workers}, "sweep": own}


def finished(name, text):
    """Return a sweep's record, whose trials ended well, none of them after another start."""
    record = read_sweep(f"s3://runs/{name}")
    assert record.state == "finished"
    states = record.counts()
    assert states["finished"] + states["pruned"] == len(record.trials) == 4, states
    assert restarts(record.uri) == 0
    assert "starts again" not in text
    return record


def test_a_sweep_on_two_nodes_starts_each_trial_once(make_cluster, tmp_path):
    """One worker per trial, as many trials at once as there are nodes; nodes share no folder."""
    cluster = make_cluster("kind-cpu-sweep")
    started = time.monotonic()
    cluster.start()
    print(f"cluster up after {time.monotonic() - started:.0f} s")
    text = cluster.run_job(tmp_path / "log.txt", sweep("grid"))
    record = finished("grid", text)
    assert record.counts()["finished"] == 4
    assert [attempts(trial) for trial in record.trials] == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_population_takes_states_over_from_another_node(make_cluster, tmp_path):
    """PBT moves states between trials of both nodes; ASHA stops trials of both."""
    cluster = make_cluster("kind-cpu-sweep")
    cluster.start()
    # Halves: with less, the worst trial may be another one each time that one of them is compared.
    pbt = {"kind": "pbt", "every_steps": 20, "quantile": 0.5, "resample_probability": 0}
    record = run_sweep(cluster, tmp_path, "pbt", 1, scheduler=pbt)
    assert record.counts()["finished"] == 4
    assert [event for trial in record.trials for event in trial.lineage]
    record = run_sweep(cluster, tmp_path, "asha", 1, scheduler=ASHA)
    assert record.counts()["pruned"]
    assert {attempts(trial) for trial in record.trials} == {1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_of_two_workers_takes_both_nodes(make_cluster, tmp_path):
    """With ASHA, too; all workers may have ended before the request to stop reaches them."""
    cluster = make_cluster("kind-cpu-sweep")
    cluster.start()
    record = run_sweep(cluster, tmp_path, "grid", 2)
    assert record.counts()["finished"] == 4
    assert {attempts(trial) for trial in record.trials} == {1}
    record = run_sweep(cluster, tmp_path, "asha", 2, scheduler=ASHA)
    assert {attempts(trial) for trial in record.trials} == {1}


def run_sweep(cluster, folder, name, workers, **more):
    """Run a sweep over learning rates, two of them far too low; return its record."""
    text = cluster.run_job(folder / name, sweep(name, workers, LR, **more), seconds=400)
    return finished(name, text)
