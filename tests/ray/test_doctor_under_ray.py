"""`aae-dist doctor` on a Ray cluster with the variables and the token of the manifests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aae_dist.config import load_config
from aae_dist.doctor import ray as ray_doctor
from aae_dist.doctor.rules import Finding
from aae_dist.launch.ray import train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

QUICK = Path(__file__).parents[2] / "configs/sweep/quick.yaml"


def test_the_ways_of_runs_and_sweeps_are_tried(cluster, tmp_path):
    items = [str(QUICK), f"run.storage={tmp_path}", "wandb.mode=disabled"]
    done = subprocess.run(
        [sys.executable, "-m", "aae_dist", "doctor", *items],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "ok   sweeps       Ray Tune ran and saved a trial on " in done.stdout
    assert "ok   train page   Ray's state tracking accepts the configuration" in done.stdout
    # By the node's own address, which need not be the one that this test uses.
    assert re.search(r"^ok   submission   http://\S+ takes a job and runs it$", done.stdout, re.M)
    assert not done.stderr.strip()


def test_a_configuration_that_ray_cannot_show_is_red(monkeypatch):
    config = load_config([], ["run.name=x", "data.train=x", "train.steps=1"]).config
    monkeypatch.setenv(ray_doctor.STATE_TRACKING, "1")
    assert ray_doctor.state_tracking(config).ok
    # What made every run on the manifests fail before: no JSON object.
    monkeypatch.setattr(train, "shown_config", lambda config: [config])
    finding: Finding = ray_doctor.state_tracking(config)
    assert not finding.ok
    assert "Input should be a valid dictionary" in finding.text
    assert ray_doctor.STATE_TRACKING in finding.advice
    monkeypatch.delenv(ray_doctor.STATE_TRACKING)
    assert ray_doctor.state_tracking(config).ok


def test_a_dashboard_that_takes_no_job_is_red(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    finding = ray_doctor.submission("http://127.0.0.1:9")
    assert not finding.ok
    assert "no Ray dashboard answers" in finding.text
