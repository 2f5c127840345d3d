"""A process that is alone uses the whole machine; ranks share it."""

import os

import pytest

from aae_dist.config.sections import run
from aae_dist.config.sections.run import Launch


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(run, "_CPU_LIMIT", tmp_path / "cpu.max")


def test_one_local_process_has_all_cores(monkeypatch):
    assert Launch(kind="local").threads == 6
    assert Launch(kind="local", cpus_per_worker=2).threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Launch(kind="local").threads == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Launch(kind="local").threads == 1


def test_workers_under_ray_have_one_each_by_default():
    assert (Launch().cpus, Launch().threads) == (1, 1)
    assert Launch(cpus_per_worker=4).cpus == 4


@pytest.mark.parametrize(
    ("limit", "threads"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("", 6)]
)
def test_a_container_has_its_share(limit, threads, tmp_path):
    (tmp_path / "cpu.max").write_text(limit)
    assert Launch(kind="local").threads == threads
