"""SIGKILL everything at a random step; the same command again ends bit-equal to an unbroken run."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fleet import finish, fleet
from helpers.runs import (
    command,
    final_tensors,
    kill_all,
    metrics,
    run,
    start,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

STEPS = 400


def assert_bit_equal(broken: str, unbroken: str, steps: int = STEPS) -> None:
    got, expected = final_tensors(broken, steps), final_tensors(unbroken, steps)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value


def assert_same_metrics(broken: str, unbroken: str) -> None:
    of_time = ("throughput", "goodput", "checkpoint", "step_seconds")

    def comparable(uri: str) -> list[dict[str, float]]:
        return [
            {k: v for k, v in r.items() if k.split("/")[0] not in of_time} for r in metrics(uri)
        ]

    assert comparable(broken) == comparable(unbroken)


def test_killed_ranks_end_bit_equal(tmp_path: Path) -> None:
    items = (f"run.storage={tmp_path}", f"train.steps={STEPS}", "checkpoint.every_steps=20")
    finish(tmp_path, *items, "run.name=whole")
    with fleet(tmp_path, *items, "run.name=broken") as ranks:
        while not list(tmp_path.glob("broken/checkpoints/*/MANIFEST.json")):
            assert ranks.processes[0].is_alive(), ranks.text()
            time.sleep(0.02)
        time.sleep(random.uniform(0.0, 0.5))
    assert "resuming" in finish(tmp_path, *items, "run.name=broken")
    assert_bit_equal(f"{tmp_path}/broken", f"{tmp_path}/whole")
    assert_same_metrics(f"{tmp_path}/broken", f"{tmp_path}/whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "on_s3"), [pytest.param(2, False, id="2 local"), pytest.param(3, True, id="3 on S3")]
)
def test_killed_run_ends_bit_equal(
    ranks: int, on_s3: bool, tmp_path: Path, request: pytest.FixtureRequest, row
) -> None:
    line = row(
        f"2{'ab'[on_s3]}",
        f"SIGKILL of torchrun and its {ranks} ranks, storage {'on S3' if on_s3 else 'on disk'}",
        "the same command ends bit-equal, metrics included",
    )
    bucket: Callable[[], str] | None = request.getfixturevalue("s3") if on_s3 else None
    storage = bucket() if bucket else str(tmp_path / "runs")
    items = [f"run.storage={storage}", f"train.steps={STEPS}", "checkpoint.every_steps=20"]
    log = tmp_path / "log.txt"
    unbroken, broken = (command(*items, f"run.name={n}", ranks=ranks) for n in ("whole", "broken"))
    assert run(unbroken, log) == 0, log.read_text()[-3000:]
    process = start(broken, log)
    wait_for_checkpoint(f"{storage}/broken", process, log)
    time.sleep(random.uniform(0.0, 2.0))
    kill_all(process)
    log.write_text("")
    assert run(broken, log) == 0, log.read_text()[-3000:]
    assert "resuming" in log.read_text()
    assert_bit_equal(f"{storage}/broken", f"{storage}/whole")
    assert_same_metrics(f"{storage}/broken", f"{storage}/whole")
    line.seen.append("bit-equal")


CLASS_PART = "{dims: 10, prior: {kind: categorical}}"
GIVEN_PART = "{dims: 10, prior: {kind: categorical}, given: label}"
WITH_LABELS = {
    "semi_supervised": (
        "method={kind: semi_supervised, smoothness: 0.5}",
        "data.labelled=builtin://digits/train",
        f"prior={{kind: product, parts: [{CLASS_PART}, {{dims: 2}}]}}",
        "model={latent_dim: 12, cluster_heads: {}}",
    ),
    "label_guided": ("method.kind=label_guided", "prior.kind=mixture"),
    "given": (
        f"prior={{kind: product, parts: [{GIVEN_PART}, {{dims: 2}}]}}",
        "model.latent_dim=12",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "semi_supervised",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("label_guided", "given")),
    ],
)
def test_a_killed_run_that_reads_labels_ends_bit_equal(name: str, tmp_path: Path) -> None:
    items = [*WITH_LABELS[name], "train.steps=80", "checkpoint.every_steps=20"]
    log, place = tmp_path / "log.txt", [f"run.storage={tmp_path}"]
    unbroken, broken = (command(*items, *place, f"run.name={n}") for n in ("whole", "broken"))
    assert run(unbroken, log) == 0, log.read_text()[-3000:]
    process = start(broken, log)
    wait_for_checkpoint(f"{tmp_path}/broken", process, log)
    kill_all(process)
    log.write_text("")
    assert run(broken, log) == 0, log.read_text()[-3000:]
    assert "resuming" in log.read_text()
    assert_bit_equal(f"{tmp_path}/broken", f"{tmp_path}/whole", 80)
    assert_same_metrics(f"{tmp_path}/broken", f"{tmp_path}/whole")
