import pytest

from aae_dist.config import load_config
from aae_dist.config.load import absolute_storage

BASE = ["run.name=a", "data.train=s3://b/x.tar", "train.steps=5"]


@pytest.fixture(autouse=True)
def home_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


def test_the_default_storage_lies_in_the_home_folder():
    assert load_config([], BASE).config.run.storage == "/home/me/aae_dist/runs"


def test_relative_paths_count_from_the_current_directory(tmp_path):
    config = load_config(
        [],
        [
            *BASE,
            "run.storage=runs",
            "run.init_from=../other",
            "data.train=['shards/{0..3}.tar', ~/x.tar, s3://b/x.tar]",
            "data.validation=builtin://digits/validation",
            "prior={kind: run, uri: runs/teacher}",
        ],
    ).config
    assert config.prior.uri == f"{tmp_path}/runs/teacher"
    assert config.run.storage == f"{tmp_path}/runs"
    assert config.run.init_from == f"{tmp_path.parent}/other"
    assert config.data.train == (
        f"{tmp_path}/shards/{{0..3}}.tar",
        "/home/me/x.tar",
        "s3://b/x.tar",
    )
    assert config.data.validation == "builtin://digits/validation"


@pytest.mark.parametrize("uri", ["s3://b/runs", "gs://b", "az://b/c", "file:///x", "/abs/path"])
def test_urls_and_absolute_paths_stay(uri):
    assert absolute_storage(uri) == uri


def test_inside_a_ray_job_relative_paths_stay_for_the_launcher_to_refuse(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute_storage("runs") == "runs"
    assert absolute_storage("~/runs") == "/home/me/runs"
    assert load_config([], [*BASE, "run.storage=runs"]).config.run.storage == "runs"


def test_values_of_the_wrong_type_are_left_for_the_sections():
    with pytest.raises(Exception, match=r"run.storage: should be text"):
        load_config([], [*BASE, "run.storage=3"])
