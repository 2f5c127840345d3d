"""SIGKILL of everything under Ray; the same command again ends bit-equal to torchrun's run."""

import random
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, command, final_tensors, kill_all, run, start

from aae_dist.storage import open_storage

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 600


def wait_for_checkpoint(uri: str, log: Path) -> None:
    until = time.monotonic() + 500
    while not any(e.key.endswith("MANIFEST.json") for e in open_storage(uri).list("checkpoints")):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def test_a_killed_run_ends_bit_equal_to_one_under_torchrun(tmp_path, monkeypatch, row):
    line = row(
        "2c",
        "SIGKILL of the driver, its Ray and 2 workers",
        "the same command ends bit-equal to an unbroken run under torchrun",
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    items = [f"run.storage={tmp_path}", f"train.steps={STEPS}", "checkpoint.every_steps=20"]
    log = tmp_path / "log.txt"
    on_ray = [sys.executable, "-m", "aae_dist", "train", *TINY, *items, "run.name=broken"]
    process = start(on_ray, log)
    wait_for_checkpoint(f"{tmp_path}/broken", log)
    time.sleep(random.uniform(0.0, 2.0))
    kill_all(process)

    log.write_text("")
    assert run(on_ray, log, timeout=600) == 0, log.read_text()
    assert "resuming" in log.read_text()
    assert run(command(*items, "run.name=whole", ranks=2), log, timeout=400) == 0, log.read_text()
    got, expected = (final_tensors(f"{tmp_path}/{name}", STEPS) for name in ("broken", "whole"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        equal = (
            torch.equal(got[name], value) if isinstance(value, torch.Tensor) else got[name] == value
        )
        assert equal, name
    line.seen.append("bit-equal")
