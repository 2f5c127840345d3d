"""What is said and refused before Ray starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from aae_dist.cli import main
from aae_dist.config import load_config
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch import launch
from aae_dist.launch.ray import cluster
from aae_dist.launch.ray.driver import launch_ray

QUICK_SWEEP = Path(__file__).parents[2] / "configs/sweep/quick.yaml"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def configure(*overrides):
    given = ["run.name=run", "data.train=builtin://digits/train", "train.steps=1", *overrides]
    return load_config([], given).config


@pytest.mark.parametrize("kind", ["ray", "local"])
def test_a_relative_folder_has_no_meaning_inside_a_job(monkeypatch, kind):
    monkeypatch.setenv(JOB, "{}")
    with pytest.raises(ConfigError, match=r"run\.storage.*inside a Ray job.*runs"):
        launch(configure("run.storage=runs", f"launch.kind={kind}"))


def test_the_start_of_a_job_says_how_to_stop_it(monkeypatch):
    config = configure()
    assert cluster.advice(config) == []
    monkeypatch.setenv(JOB, "{}")
    (line,) = cluster.advice(config)
    assert "RAY_JOB_STOP_WAIT_TIME_S" in line
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
    assert cluster.advice(config) == []


def test_more_workers_than_this_machine_has_cores_are_refused_without_ray(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(LaunchError, match=r"can never start: this machine"):
        launch_ray(configure(f"run.storage={tmp_path}", "launch.cpus_per_worker=60000"))


@pytest.mark.run
def test_importing_the_launcher_loads_neither_ray_nor_torch():
    code = "import sys, aae_dist.launch; print({'ray', 'torch', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("aae_dist.launch.find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"pip install 'aae_dist\[ray\]'.*launch\.kind=local"):
        launch(configure(f"run.storage={tmp_path}"))


@pytest.mark.parametrize("key", ["train", "validation"])
@pytest.mark.parametrize("verb", ["train", "tune"])
def test_absent_data_is_reported_before_ray_is_used(verb, key, s3, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # nobody answers there
    items = [f"run.storage={tmp_path}", "data.train=builtin://digits/train", "train.steps=1"]
    items += ["run.name=x"] if verb == "train" else [str(QUICK_SWEEP)]
    absent = f"{s3()}/absent/*.tar"
    assert main([verb, *items, f"data.{key}={absent}", "launch.kind=ray"]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("aae-dist:")]
    assert f"data.{key}: {absent}: no such file or folder" in line
