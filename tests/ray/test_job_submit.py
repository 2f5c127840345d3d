"""The quickstart as a Ray job: stopped, it leaves a checkpoint; submitted again, it ends."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aae_dist.storage import open_storage

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
STOP_WAIT = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


class Jobs:
    """The command line `ray job`, against one cluster."""

    def __init__(self, cluster):
        self.environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.dashboard}

    def run(self, *arguments):
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=600
        )

    def submit(self, name, *overrides, runtime_env=STOP_WAIT):
        train = [sys.executable, "-m", "aae_dist", "train", str(ROOT / "configs/quickstart.yaml")]
        done = self.run(
            *["submit", "--no-wait", "--submission-id", name],
            *["--runtime-env-json", json.dumps(runtime_env), "--", *train, *overrides],
        )
        assert done.returncode == 0, done.stderr

    def status(self, name):
        return self.run("status", name).stdout

    def logs(self, name):
        return self.run("logs", name).stdout

    def wait_for_end(self, name, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.status(name)
            for end in ("SUCCEEDED", "FAILED", "STOPPED"):
                if end in status.upper():
                    return end
            time.sleep(3)
        raise AssertionError(f"{name} did not end:\n{self.logs(name)}")


def checkpoints(run):
    done = [e.key for e in open_storage(str(run)).list("checkpoints")]
    return sorted(int(k.split("/")[1][5:]) for k in done if k.endswith("MANIFEST.json"))


def wait_for_checkpoint(run, jobs, name):
    until = time.monotonic() + 500
    while not checkpoints(run):
        assert time.monotonic() < until, jobs.logs(name)
        time.sleep(0.5)


def test_a_stopped_job_resumes_when_submitted_again(cluster, tmp_path):
    jobs, run = Jobs(cluster), tmp_path / "quickstart"
    overrides = (f"run.storage={tmp_path}", "checkpoint.every_steps=20", "wandb.mode=disabled")

    jobs.submit("first", *overrides, "train.steps=100000")
    wait_for_checkpoint(run, jobs, "first")
    assert jobs.run("stop", "first").returncode == 0
    assert jobs.wait_for_end("first", 120) == "STOPPED"
    lines = jobs.logs("first")
    stopped = int(re.search(r"stopped at step (\d+) as asked", lines).group(1))
    assert checkpoints(run)[-1] == stopped
    assert "RAY_JOB_STOP_WAIT_TIME_S" not in lines

    end = f"train.steps={stopped + 200}"
    jobs.submit("second", *overrides, end, runtime_env={})
    assert jobs.wait_for_end("second", 600) == "SUCCEEDED", jobs.logs("second")
    lines = jobs.logs("second")
    assert f"resuming {run} at step {stopped}" in lines
    assert "note: `ray job stop` will end this job after 3 s" in lines
    assert checkpoints(run)[-1] == stopped + 200
    assert f"Run folder: {run}" in lines
    noise = [x for x in lines.splitlines() if "pid=" in x or "(raylet)" in x or "WARN" in x]
    assert not noise


def test_a_relative_folder_is_refused_with_exit_code_2(cluster):
    jobs = Jobs(cluster)
    jobs.submit("relative", "run.storage=runs")
    assert jobs.wait_for_end("relative", 200) == "FAILED"
    assert "run.storage: a relative path has no meaning inside a Ray job (got runs)" in jobs.logs(
        "relative"
    )
