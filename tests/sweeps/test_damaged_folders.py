"""Sweep and run folders whose documents were damaged, or written by somebody else."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aae_dist.config import load_config
from aae_dist.errors import AaeDistError, CheckpointError, DataError
from aae_dist.report import make_report
from aae_dist.storage import open_storage
from aae_dist.storage.documents import MAX_BYTES, Document, Map, parse_document
from aae_dist.sweeps import read_sweep
from aae_dist.sweeps.folder import TrialState
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import SweepPlan, load_sweep
from aae_dist.training.checkpointer import finished_before

SCORE = "reconstruction/mse"
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 2**70, "", "x", "../..", "a\x1b[31mb", [], [1], {}, {"a": {"b": [1]}}),
)


def sweep_plan(storage: Path) -> SweepPlan:
    items = [
        *(f"run.storage={storage}", "data.train=builtin://digits/train", "train.steps=100"),
        "data.validation=builtin://digits/validation",
        *("launch.workers=1", "sweep.name=s", "sweep.space.model.latent_dim={grid: [2, 4, 8]}"),
        f"sweep.metric={SCORE}",
    ]
    return load_sweep([], items)


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """Return the plan of a finished sweep, whose folder is written."""
    plan = sweep_plan(tmp_path)
    ledger = Ledger(plan, open_storage(plan.uri))
    for number, trial in enumerate(plan.trials):
        metrics = {"step": 100, SCORE: 0.1 * number}
        config = trial.config.model_dump(mode="json")
        summary = {"state": "finished", "step": 100, "metrics": metrics, "config": config}
        run = open_storage(f"{plan.uri}/trials/{trial.id}")
        run.write("summary.json", json.dumps(summary).encode())
        run.write("metrics.jsonl", json.dumps(metrics).encode())
        ledger.start(trial.id)
        ledger.update(trial.id, metrics, trial.parameters)
        event = {"parent": "/p", "step": 3, "values": {"phases.encoder.optimizer.lr": 0.1}}
        ledger.exploit(trial.id, event)
        ledger.finish(trial.id, TrialState.FINISHED)
    ledger.write("finished")
    return plan


@pytest.mark.parametrize("name", ["trial.json", "summary.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"{}", b"[" * 10**5])
def test_a_damaged_document_costs_its_trial_alone(plan: SweepPlan, name: str, text: bytes) -> None:
    first = plan.trials[0].id
    open_storage(plan.uri).write(f"trials/{first}/{name}", text)
    found = read_sweep(plan.uri)
    assert [t.state for t in found.trials] == ["failed", "finished", "finished"]
    assert f"{first}/{name} is damaged: " in (found.trials[0].cause or "")
    ledger = Ledger(plan, open_storage(plan.uri))
    assert [e.state for e in ledger.entries.values()] == ["failed", "finished", "finished"]
    assert len(ledger.ranked()) == 2


def test_a_run_with_a_damaged_summary_is_refused_in_one_line(plan: SweepPlan) -> None:
    trial = plan.trials[0]
    open_storage(plan.uri).write(f"trials/{trial.id}/summary.json", b'{"state": "finished"}')
    with pytest.raises(DataError, match=r"summary.json is damaged: step: Field required") as found:
        finished_before(trial.config)
    assert "\n" not in str(found.value)


def test_a_finished_run_with_a_metric_that_was_not_finite_is_returned(plan: SweepPlan) -> None:
    trial = plan.trials[0]
    key = f"trials/{trial.id}/summary.json"
    summary = json.loads(open_storage(plan.uri).read(key))
    summary["metrics"]["loss/x"] = None
    open_storage(plan.uri).write(key, json.dumps(summary).encode())
    outcome = finished_before(trial.config)
    assert outcome is not None
    assert outcome.metrics["loss/x"] != outcome.metrics["loss/x"]  # NaN


def mutated(tree: Any, draw: random.Random) -> Any:
    """Return a JSON tree with one value somewhere replaced or removed."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.15:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: mutated(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.7:
        place = draw.randrange(len(tree))
        return [*tree[:place], mutated(tree[place], draw), *tree[place + 1 :]]
    return draw.choice(ODD)


def readers(plan: SweepPlan) -> list[Any]:
    return [
        lambda: read_sweep(plan.uri),
        lambda: Ledger(plan, open_storage(plan.uri)).ranked(),
        lambda: [finished_before(trial.config) for trial in plan.trials],
    ]


def check(plan: SweepPlan, key: str, data: bytes, actions: list[Any]) -> None:
    """Write a damaged document and check that nothing but our own errors leaves its readers."""
    storage = open_storage(plan.uri)
    sound = storage.read(key)
    storage.write(key, data)
    errors = []
    for action in actions:
        try:
            action()
        except AaeDistError as error:
            errors.append(str(error))
    assert not any("\x1b" in text or len(text) > 2000 for text in errors)
    storage.write(key, sound)


@pytest.mark.run
@pytest.mark.parametrize("name", ["sweep.json", "trial.json", "summary.json"])
def test_nothing_but_our_errors_leaves_a_mutated_sweep_folder(plan: SweepPlan, name: str) -> None:
    draw = random.Random(name)
    key = name if name == "sweep.json" else f"trials/{plan.trials[1].id}/{name}"
    text = open_storage(plan.uri).read(key)
    for _ in range(40):
        damaged = bytearray(text)
        if draw.random() < 0.25:
            damaged[draw.randrange(len(text))] = draw.randrange(256)
            data = bytes(damaged)
        else:
            data = json.dumps(mutated(json.loads(text), draw)).encode()
        check(plan, key, data, readers(plan))


@pytest.mark.run
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["sweep.json", "trial.json"])
def test_a_report_of_a_mutated_sweep_folder_is_made_or_refused(plan: SweepPlan, name: str) -> None:
    draw = random.Random(name)
    key = name if name == "sweep.json" else f"trials/{plan.trials[1].id}/{name}"
    document = json.loads(open_storage(plan.uri).read(key))
    for _ in range(30):
        data = json.dumps(mutated(document, draw)).encode()
        check(plan, key, data, [lambda: make_report(plan.uri)])


class Small(Document):
    tree: Map


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b" " * (MAX_BYTES + 1), "more than 4194304 bytes"),
        (b'{"tree": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, "deeper than 32 levels"),
        (b'{"tree": {"a": 1e999}}', "not finite"),
        (b'{"tree": {"a": 1' + b"0" * 30 + b"}}", "more than 64 bits"),
        (b'{"tree": {"a": 1' + b"0" * 9000 + b"}}", "number out of range"),
        (b'{"tree": {"a": "\\ud800"}}', "Invalid JSON"),
    ],
)
def test_a_document_is_bounded_in_bytes_depth_and_numbers(text: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as found:
        parse_document(text, "x.json", Small)
    assert str(found.value).startswith("x.json ")
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 300


def test_the_config_of_a_damaged_summary_never_reaches_a_key_error(tmp_path: Path) -> None:
    base = ["data.train=builtin://digits/train", "run.name=x", f"run.storage={tmp_path}"]
    config = load_config([], [*base, "train.steps=3"]).config
    for tree in (
        {},
        {"train": 3},
        {"train": {"steps": 3}},
        {"train": {"steps": 3, "epochs": None}},
    ):
        summary = {"state": "finished", "step": 3, "metrics": {}, "config": tree}
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x/summary.json").write_text(json.dumps(summary))
        with suppress(CheckpointError):  # another configuration
            assert finished_before(config) is None
