"""Sweeps on pods that share nothing but the bucket: each trial is started exactly once."""

import time

import pytest
from helpers.sweeps import attempts, restarts
from helpers.tiny import SMALL

from aae_dist.sweeps import read_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]

LR = {"phases": {"reconstruction": {"optimizer": {"lr": {"grid": [1e-3, 9e-4, 1e-7, 2e-7]}}}}}
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
def test_schedulers_and_trials_of_two_workers_need_no_shared_folder_either(make_cluster, tmp_path):
    """PBT moves states from node to node, ASHA stops trials, and a trial takes both nodes."""
    cluster = make_cluster("kind-cpu-sweep")
    cluster.start()
    # Halves: with less, the worst trial may be another one each time that one of them is compared.
    pbt = {"kind": "pbt", "every_steps": 20, "quantile": 0.5, "resample_probability": 0}
    text = cluster.run_job(tmp_path / "pbt", sweep("pbt", 1, LR, scheduler=pbt))
    record = finished("pbt", text)
    assert record.counts()["finished"] == 4
    assert [event for trial in record.trials for event in trial.lineage]
    asha = {"scheduler": {"kind": "asha", "grace": 20, "reduction_factor": 2}}
    for name, workers, more in (("grid2", 2, {}), ("asha", 1, asha), ("asha2", 2, asha)):
        text = cluster.run_job(tmp_path / name, sweep(name, workers, LR, **more), seconds=400)
        record = finished(name, text)
        assert {attempts(trial) for trial in record.trials} == {1}, name
        # Of several workers, all may have ended before the word to stop has reached them.
        assert name != "asha" or record.counts()["pruned"]
        assert name != "grid2" or not record.counts()["pruned"]
