"""A sweep as a Ray job, its folder in a bucket of a real S3 server."""

import json
import os
import subprocess
import sys
import time

import pytest
from helpers.sweeps import SMALL, attempts

from aae_dist.sweeps import read_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def ray_job(cluster, *arguments):
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
    environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.dashboard}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def submit(cluster, s3_environment, name, *items):
    variables = {**s3_environment, "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    entry = [sys.executable, "-m", "aae_dist", "tune", *SMALL, *items]
    done = ray_job(
        cluster,
        *["submit", "--no-wait", "--submission-id", name],
        *["--runtime-env-json", json.dumps({"env_vars": variables}), "--", *entry],
    )
    assert done.returncode == 0, done.stderr


def wait_for_end(cluster, name, seconds=900):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status = ray_job(cluster, "status", name).stdout.upper()
        if found := next((e for e in ("SUCCEEDED", "FAILED", "STOPPED") if e in status), None):
            return found
        time.sleep(3)
    raise AssertionError(ray_job(cluster, "logs", name).stdout)


def test_a_stopped_sweep_goes_on_when_submitted_again(cluster, s3, s3_environment):
    bucket = s3()
    items = (
        f"run.storage={bucket}/sweeps",
        "sweep.space.run.seed={grid: [0, 1, 2]}",
        "sweep.max_concurrent=1",
        "train.steps=1500",
        "checkpoint.every_steps=100",
    )
    uri = f"{bucket}/sweeps/sweep"
    submit(cluster, s3_environment, "sweep-first", *items)
    until = time.monotonic() + 600
    while not _finished(uri):
        assert time.monotonic() < until, ray_job(cluster, "logs", "sweep-first").stdout
        time.sleep(1)
    assert ray_job(cluster, "stop", "sweep-first").returncode == 0
    assert wait_for_end(cluster, "sweep-first", 200) == "STOPPED"
    lines = ray_job(cluster, "logs", "sweep-first").stdout
    assert "stopping: running trials save a checkpoint first" in lines
    done = [t.id for t in read_sweep(uri).trials if t.state == "finished"]
    assert 1 <= len(done) < 3

    submit(cluster, s3_environment, "sweep-second", *items)
    lines = ray_job(cluster, "logs", "sweep-second").stdout
    assert wait_for_end(cluster, "sweep-second") == "SUCCEEDED", lines
    found = read_sweep(uri)
    assert found.state == "finished"
    assert [t.step for t in found.trials] == [1500] * 3
    assert all(attempts(t) == 1 for t in found.trials if t.id in done)
    lines = ray_job(cluster, "logs", "sweep-second").stdout
    noise = [x for x in lines.splitlines() if "pid=" in x or "(raylet)" in x or "WARN" in x]
    assert not noise


def _finished(uri):
    try:
        return read_sweep(uri, histories=False).counts()["finished"]
    except Exception:
        return 0  # it has not begun to write
