"""What every fault must leave behind: the numbers, the samples and the machine as without it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from helpers.runs import final_tensors, metrics

from aae_dist.data import open_manifest


def assert_bit_equal(got_uri: str, expected_uri: str, step: int) -> None:
    """Every tensor and the state of the checkpoint of `step` are the same in both runs."""
    got, expected = final_tensors(got_uri, step), final_tensors(expected_uri, step)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value, (name, got[name], value)


def assert_ledger_exact(uri: str, batch: int, every: int, steps: int) -> None:
    """Each log point stands once, and counts each sample of its steps once."""
    records = metrics(uri)
    points = [s for s in range(1, steps + 1) if s % every == 0 or s == steps]
    assert [r["step"] for r in records] == points
    total = open_manifest("builtin://digits/train").num_samples
    # The last batch of an epoch is not full.
    epochs = [divmod(step, -(-total // batch)) for step in points]
    seen = [epoch * total + min(rest * batch, total) for epoch, rest in epochs]
    assert [r["samples_seen"] for r in records] == seen


def summary(uri: str) -> dict[str, Any]:
    return dict(json.loads(Path(uri, "summary.json").read_text()))


def litter(folder: Path) -> list[str]:
    """Return temporary files of writers below `folder`."""
    return [str(p) for p in folder.rglob("*.aae-tmp")]


def seal(fields: dict[str, Any]) -> bytes:
    """Return a manifest of these fields with a hash that fits, as anybody can make one."""
    before = json.dumps(fields, sort_keys=True, separators=(",", ":"))[:-1].encode() + b","
    return before + f'"sha256":"{hashlib.sha256(before).hexdigest()}"}}'.encode()
