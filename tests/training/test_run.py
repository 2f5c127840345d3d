"""A whole run in this process: its folder, how it resumes, what it refuses."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import single_world
from helpers.runs import TINY, command, final_tensors, metrics, run as run_command

import aae_dist
from aae_dist.config import RunConfig, load_config, metric_names
from aae_dist.errors import CheckpointError, DataError, LaunchError, TrainingDivergedError
from aae_dist.storage import open_storage
from aae_dist.sweeps.listing import RunRow, list_runs
from aae_dist.training.folder import Outcome
from aae_dist.training.lock import RunLock
from aae_dist.training.trainer import Trainer, train

pytestmark = pytest.mark.run

DIVERGES = "phases.reconstruction.optimizer={kind: sgd, lr: 1e30}"
NO_VALIDATION = "data.validation=null"


class RecordingReporter:
    """Remembers what it is told; asks to stop once `stop_at` log points were reported."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: list[str] = []
        self.reports: list[Mapping[str, float]] = []
        self._stop_at = stop_at

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reports.append(metrics)

    def stop_requested(self) -> bool:
        return self._stop_at is not None and len(self.reports) >= self._stop_at

    def stopped_as(self) -> str:
        return "interrupted"

    def save_requested(self) -> bool:
        return False

    def line(self, text: str) -> None:
        self.lines.append(text)


def config(storage: Path, *items: str) -> RunConfig:
    overrides = [f"run.storage={storage}", "run.name=run", "launch.kind=local", *TINY, *items]
    return load_config([], overrides).config


def go(storage: Path, *items: str, stop_at: int | None = None) -> tuple[Outcome, RecordingReporter]:
    torch.set_num_threads(1)
    reporter = RecordingReporter(stop_at)
    return train(config(storage, *items), single_world(), reporter, "launch"), reporter


def assert_bit_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(got[name], value) if isinstance(value, torch.Tensor) else None
        assert same or got[name] == value, name


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_the_folder_of_the_contract(tmp_path: Path) -> None:
    outcome, reporter = go(tmp_path, "train.steps=25", "train.evaluate_every_steps=10")
    folder = tmp_path / "run"
    assert (outcome.state, outcome.step, outcome.run_uri) == ("finished", 25, str(folder))
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "pictures/latent_codes.png",
        "pictures/losses.png",
        "pictures/prior_samples.png",
        "pictures/reconstructions.png",
        "checkpoints/step-000000025/MANIFEST.json",
        "checkpoints/step-000000025/model.safetensors",
    }
    records = metrics(str(folder))
    assert [r["step"] for r in records] == [10, 20, 25]
    assert {"epoch", "samples_seen", "loss/reconstruction", "loss/discriminator"} <= set(records[0])
    assert {"prior_match/c2st", "reconstruction/mse", "discriminator/accuracy_prior"} <= set(
        records[0]
    )
    assert records[-1]["samples_seen"] == 25 * 48
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["prior_match/c2st"] == outcome.metrics["prior_match/c2st"]
    # Both came after the last log point.
    assert summary["metrics"]["goodput/evaluation_seconds"] > 0
    assert summary["metrics"]["checkpoint/bytes"] > 0
    assert [r["step"] for r in reporter.reports] == [10, 20, 25]


def test_a_finished_run_returns_at_once_and_can_be_prolonged(tmp_path: Path) -> None:
    go(tmp_path, NO_VALIDATION, "train.steps=10")
    again, reporter = go(tmp_path, NO_VALIDATION, "train.steps=10")
    assert again.state == "already_finished"
    assert reporter.reports == []
    longer, reporter = go(tmp_path, NO_VALIDATION, "train.steps=20")
    assert (longer.state, longer.step) == ("finished", 20)
    assert any("resuming" in line and "step 10" in line for line in reporter.lines)
    assert [r["step"] for r in metrics(longer.run_uri)] == [10, 20]


def test_fewer_steps_than_are_done_are_said(tmp_path: Path) -> None:
    go(tmp_path, NO_VALIDATION, "train.steps=20")
    again, reporter = go(tmp_path, NO_VALIDATION, "train.steps=10")
    assert (again.state, again.step) == ("finished", 20)
    [line] = [line for line in reporter.lines if "nothing is trained" in line]
    assert "train.steps=10 is less than the 20 steps that are done" in line
    _, reporter = go(tmp_path, NO_VALIDATION, "train.steps=30")
    assert not any("nothing is trained" in line for line in reporter.lines)


def test_fewer_epochs_than_are_done_are_said(tmp_path: Path) -> None:
    items = [NO_VALIDATION, "train.global_batch_size=1000"]
    go(tmp_path, *items, "train.epochs=2")
    _, reporter = go(tmp_path, *items, "train.epochs=1")
    assert any("train.epochs=1 is less than the 2 epochs" in line for line in reporter.lines)


def listed(storage: Path) -> RunRow:
    [row] = list_runs(open_storage(str(storage)))
    return row


def test_a_run_that_ends_by_an_error_is_listed_as_failed_with_its_cause(tmp_path: Path) -> None:
    absent = f"data.train={tmp_path}/absent"
    with pytest.raises(DataError):
        go(tmp_path / "runs", absent, "train.steps=5")
    row = listed(tmp_path / "runs")
    assert (row.state, row.step) == ("failed", 0)
    assert "absent" in (row.cause or "")
    # The same command with the right data trains; then another failure does not hide its end.
    go(tmp_path / "runs", NO_VALIDATION, "train.steps=5")
    assert listed(tmp_path / "runs").state == "finished"
    with pytest.raises(DataError):
        go(tmp_path / "runs", NO_VALIDATION, absent, "train.steps=10")
    assert listed(tmp_path / "runs").state == "finished"


def test_a_run_that_fails_while_it_trains_is_listed_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def failing(self: Trainer, batch: Any) -> Any:
        if self.state.step == 12:
            raise DataError("the shards are gone")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", failing)
    with pytest.raises(DataError):
        go(tmp_path, NO_VALIDATION, "train.epochs=2")
    row = listed(tmp_path)
    assert (row.state, row.step, row.cause) == ("failed", 12, "the shards are gone")
    assert row.total_steps == 2 * 167
    assert row.metrics["step"] == 10


def test_a_stopped_run_resumes_bit_equal_to_an_unbroken_one(tmp_path: Path) -> None:
    items = [NO_VALIDATION, "train.steps=40", "train.log_every_steps=1", "posterior.kind=gaussian"]
    whole, _ = go(tmp_path / "whole", *items)
    stopped, _ = go(tmp_path / "broken", *items, stop_at=13)
    assert stopped.state == "interrupted"
    assert 13 <= stopped.step < 40
    resumed, _ = go(tmp_path / "broken", *items)
    assert resumed.state == "finished"
    assert_bit_equal(final_tensors(resumed.run_uri, 40), final_tensors(whole.run_uri, 40))
    assert [r["step"] for r in metrics(resumed.run_uri)] == list(range(1, 41))


def test_epochs_count_every_sample_and_the_batch_size_may_change_between(tmp_path: Path) -> None:
    items = [NO_VALIDATION, "train.epochs=1", "train.global_batch_size=480", "data.lanes=24"]
    outcome, _ = go(tmp_path, *items)
    assert outcome.step == math.ceil(8000 / 480)
    assert outcome.metrics["samples_seen"] == 8000
    items = [NO_VALIDATION, "train.epochs=2", "train.global_batch_size=240", "data.lanes=24"]
    outcome, _ = go(tmp_path, *items)
    assert outcome.step == math.ceil(8000 / 480) + math.ceil(8000 / 240)
    assert outcome.metrics["samples_seen"] == 16000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("phases.generator.optimizer.lr=1e-5", r"phases\.generator\.optimizer\.lr: saved None"),
        ("run.seed=1", r"run\.seed: saved 0, now 1"),
        ("model.latent_dim=4", r"model\.latent_dim: saved 2, now 4"),
        ("train.global_batch_size=50", "must be a multiple of 24"),
        ("data.train=builtin://digits/validation", "was trained on other shards"),
        ("run.resume=never", "has a checkpoint of step 10"),
    ],
)
def test_a_resume_that_would_be_another_run_is_refused(
    tmp_path: Path, change: str, message: str
) -> None:
    go(tmp_path, NO_VALIDATION, "train.steps=10")
    with pytest.raises(CheckpointError, match=message):
        go(tmp_path, NO_VALIDATION, "train.steps=20", change)


def test_resume_must_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.resume=must, but .* has no checkpoint"):
        go(tmp_path, NO_VALIDATION, "train.steps=10", "run.resume=must")


def test_a_second_writer_of_a_live_run_is_refused(tmp_path: Path) -> None:
    from aae_dist.storage import open_storage

    with (
        RunLock.acquire(open_storage(str(tmp_path / "run")), "another launch"),
        pytest.raises(LaunchError, match=r"run"),
    ):
        go(tmp_path, NO_VALIDATION, "train.steps=10")


def test_init_from_takes_weights_and_starts_at_step_0(tmp_path: Path) -> None:
    first, _ = go(tmp_path, NO_VALIDATION, "train.steps=10")
    items = [f"run.init_from={first.run_uri}", "run.name=second", "run.seed=5"]
    frozen = (
        "phases={reconstruction: {optimizer: {lr: 1e-30}}, generator: {optimizer: {lr: 1e-30}}}"
    )
    second, _ = go(tmp_path, NO_VALIDATION, "train.steps=1", frozen, *items)
    got, expected = final_tensors(second.run_uri, 1), final_tensors(first.run_uri, 10)
    for name, tensor in expected.items():
        if name.startswith("model.safetensors/encoder"):
            assert torch.equal(got[name], tensor)
    assert got["state"]["step"] == 1


def test_a_diverged_run_ends_with_its_own_error_after_the_configured_number(tmp_path: Path) -> None:
    items = [DIVERGES, "method.balance=none", "train.max_skipped_updates=4"]
    with pytest.raises(TrainingDivergedError, match="skipped 4 consecutive updates"):
        go(tmp_path, NO_VALIDATION, "train.steps=100", *items)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "diverged"


def test_the_command_of_a_run_that_diverges_exits_3(tmp_path: Path) -> None:
    items = [f"run.storage={tmp_path}", "run.name=run", NO_VALIDATION, "train.steps=100"]
    items += [DIVERGES, "method.balance=none"]
    assert run_command(command(*items), tmp_path / "log.txt") == 3
    last = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert last.startswith("aae-dist: training diverged: ")
    assert (tmp_path / "run" / "pictures" / "losses.png").exists()  # no evaluation has drawn them


@pytest.mark.usefixtures("pictures")
def test_without_matplotlib_a_run_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("curves", "pictures"):
        monkeypatch.delitem(sys.modules, f"aae_dist.evaluation.{name}", raising=False)
    outcome, reporter = go(tmp_path, "train.steps=5")
    assert outcome.state == "finished"
    assert any("pictures of step 5 failed" in line for line in reporter.lines)


def test_micro_batches_are_the_whole_share_on_the_cpu_if_auto(tmp_path: Path) -> None:
    plain, _ = go(tmp_path / "plain", NO_VALIDATION, "train.steps=3")
    auto, _ = go(tmp_path / "auto", NO_VALIDATION, "train.steps=3", "train.micro_batch_size=auto")
    assert_bit_equal(final_tensors(auto.run_uri, 3), final_tensors(plain.run_uri, 3))


def is_marked_best(uri: str, step: int) -> bool:
    manifest = open_storage(uri).read(f"checkpoints/step-{step:09d}/MANIFEST.json")
    return bool(json.loads(manifest)["best"])


def test_another_best_metric_starts_its_comparison_anew(tmp_path: Path) -> None:
    checks = ["train.evaluate_every_steps=10", "checkpoint.every_steps=10", "checkpoint.keep=9"]
    higher = "prior_match/sliced_wasserstein"
    first, _ = go(tmp_path, *checks, "train.best_metric=reconstruction/mse", "train.steps=10")
    found = metrics(first.run_uri)[-1]
    assert found[higher] > 2 * found["reconstruction/mse"]
    go(tmp_path, *checks, f"train.best_metric={higher}", "train.steps=20")
    assert is_marked_best(first.run_uri, 20)
    state = final_tensors(first.run_uri, 20)["state"]
    assert state["best"] == metrics(first.run_uri)[-1][higher]
    assert state["best_of"].startswith(f"{higher} of ")


@pytest.mark.parametrize("method", metric_names.METHODS)
def test_a_run_writes_the_metrics_that_may_be_named(tmp_path: Path, method: str) -> None:
    parts = "[{dims: 10, prior: {kind: categorical}}, {dims: 2}]"
    more = {
        "variational": ["posterior.kind=gaussian"],
        "label_guided": ["prior.kind=mixture"],
        "semi_supervised": [
            f"prior={{kind: product, parts: {parts}}}",
            "model.latent_dim=12",
            "data.labelled=builtin://digits/validation",
            "method.smoothness=1",
        ],
    }.get(method, [])
    _, reporter = go(tmp_path, "train.steps=10", f"method.kind={method}", *more)
    (report,) = reporter.reports
    known = metric_names.logged(method) | metric_names.evaluated(method)
    known -= set() if method == "semi_supervised" else {"loss/smoothness"}
    # The alarm of a dead discriminator comes with the scores, and that of a winner with losses.
    more_of_parts = {n for n in report if n.startswith("part_")} | {*metric_names.OF_CLASSES}
    assert set(report) - more_of_parts == known
    assert {n.partition("/")[2] for n in report if n.startswith("part_")} <= known | more_of_parts


def test_a_diverged_run_is_not_tried_again_unless_something_changed(tmp_path: Path) -> None:
    items = [DIVERGES, "method.balance=none", "train.max_skipped_updates=4"]
    with pytest.raises(TrainingDivergedError):
        go(tmp_path, NO_VALIDATION, "train.steps=100", *items)
    with pytest.raises(TrainingDivergedError, match="diverged at step 4 and would again"):
        go(tmp_path, NO_VALIDATION, "train.steps=100", *items)
    items[2] = "train.max_skipped_updates=6"
    with pytest.raises(TrainingDivergedError, match="skipped 6 consecutive updates"):
        go(tmp_path, NO_VALIDATION, "train.steps=100", *items)


def test_load_run_encodes_decodes_and_samples(tmp_path: Path) -> None:
    outcome, _ = go(tmp_path, "train.steps=10")
    run = aae_dist.load_run(outcome.run_uri)
    assert run.step == 10
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    codes = run.encode(images)
    assert codes.shape == (5, 2)
    assert torch.allclose(codes, run.encode(images.float() / 255), atol=1e-5)
    assert torch.equal(run.reconstruct(images), run.decode(codes))
    sample = run.sample(3, generator=torch.Generator().manual_seed(1))
    assert sample.shape == (3, 1, 28, 28)
    assert 0.0 <= float(sample.min()) <= float(sample.max()) <= 1.0
    metrics = run.evaluate().metrics
    assert metrics["reconstruction/mse"] == outcome.metrics["reconstruction/mse"]
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\)"):
        run.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        aae_dist.load_run(str(tmp_path / "nothing"))
