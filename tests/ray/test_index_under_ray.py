"""Shards counted by tasks of a real cluster."""

import pytest
from helpers.shards import write_shards

from aae_dist.cli import main
from aae_dist.data import open_manifest
from aae_dist.errors import ConfigError
from aae_dist.launch.ray.tasks import ray_executor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_cluster_counts_as_threads_do(joined, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = write_shards(tmp_path / "a", [3, 0, 5] * 7)
    assert main(["data", "index", str(tmp_path / "a"), "--ray"]) == 0
    assert open_manifest(str(tmp_path / "a")).counts.tolist() == [3, 0, 5] * 7
    paths[4].write_bytes(b"no tar")
    assert main(["data", "index", str(tmp_path / "a"), "--ray"]) == 2
    assert "004.tar: cut off" in capsys.readouterr().err


def test_without_a_cluster_it_says_so(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--ray needs a cluster"), ray_executor():
        pass
