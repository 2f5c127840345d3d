import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aae_dist.cli import main
from aae_dist.config import dump_yaml, load_config
from aae_dist.storage import open_storage
from aae_dist.sweeps.listing import list_runs
from aae_dist.training.lock import this_process
from aae_dist.utils.text import age

METRICS = {"reconstruction/mse": 0.0123, "prior_match/c2st": 0.55, "epoch": 2.0}


@cache
def config_text(name: str, plan: str) -> bytes:
    """Return the document of a run's configuration."""
    items = [f"run.name={name}", "data.train=builtin://digits/train", plan, "prior.kind=mixture"]
    return dump_yaml(load_config([], items).config).encode()


def write_run(
    storage: str,
    name: str,
    state: str | None = None,
    step: int = 40,
    lock: dict[str, Any] | None = None,
    plan: str = "train.steps=100",
) -> None:
    """Write what a run leaves: its lock with changes, its summary if it ended in `state`."""
    run = open_storage(storage).child(name)
    run.write("config.yaml", config_text(name, plan))
    if lock is not None:
        run.write("lock.json", this_process(1, "x").model_copy(update=lock).encoded())
    lines = [{"step": n, "loss/reconstruction": n, **METRICS} for n in range(10, step + 1, 10)]
    if state:
        summary = {"state": state, "step": step, "metrics": METRICS, "config": {}}
        run.write("summary.json", json.dumps(summary).encode())
    if step:
        run.write("metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())


def write_all(storage: str) -> None:
    write_run(storage, "done", "finished", 100, {"released": True})
    write_run(storage, "live", None, 40, {})
    write_run(storage, "again", "interrupted", 40, {})
    write_run(storage, "killed", None, 30, {"pid": 2**22 + 1})
    write_run(storage, "early", None, 0, {"pid": 2**22 + 1})
    write_run(storage, "broke", "diverged", 50, {"released": True})
    write_run(storage, "far", None, 40, {"host": "elsewhere"}, "train.epochs=4")
    sweep = open_storage(storage).child("sweep")
    sweep.write("sweep.json", b"{}")
    for trial in "ab":
        write_run(f"{storage}/sweep/trials", trial, "finished", 100)
    open_storage(storage).child("no-run").write("notes.txt", b"")


STATES = {
    "again": ("running", 40),
    "broke": ("diverged", 50),
    "done": ("finished", 100),
    "early": ("new", None),
    "far": ("running", 40),
    "killed": ("stopped", 30),
    "live": ("running", 40),
    "sweep": ("sweep", None),
}


def test_every_run_has_its_state_step_and_newest_metrics(tmp_path: Path) -> None:
    write_all(str(tmp_path))
    rows = {row.name: row for row in list_runs(open_storage(str(tmp_path)))}
    assert {name: (row.state, row.step) for name, row in rows.items()} == STATES
    assert rows["live"].metrics["prior_match/c2st"] == 0.55
    assert rows["live"].total_steps == 100
    assert rows["far"].total_steps == 80
    assert rows["sweep"].num_trials == 2
    assert all(row.age_seconds < 60 for row in rows.values())
    assert [row.name for row in list_runs(open_storage(f"{tmp_path}/done"))] == ["done"]


def test_a_holder_elsewhere_that_is_silent_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(str(tmp_path), "far", None, 40, {"host": "elsewhere"})
    later = time.time() + 90
    monkeypatch.setattr(time, "time", lambda: later)
    [row] = list_runs(open_storage(str(tmp_path)))
    assert row.state == "stopped"
    assert 85 < row.age_seconds < 120


def test_a_bucket_lists_as_a_folder_does(
    s3: Callable[[], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"{s3()}/runs"
    write_all(storage)
    assert main(["runs", storage, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"]: (row["state"], row["step"]) for row in listed} == STATES
    assert all(row["age_seconds"] < 60 for row in listed)
    assert listed[2]["prior"] == "mixture"
    assert listed[2]["metrics"]["reconstruction/mse"] == 0.0123


def test_the_table_is_readable_at_a_glance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(str(tmp_path))
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["8", "in"]
    row = next(line.split() for line in lines if line.split()[:1] == ["done"])
    assert row[:7] == ["done", "finished", "100/100", "mixture", "8", "0.0123", "0.55"]
    assert any("2 trials" in line for line in lines)
    assert main(["runs", f"{tmp_path}/no-run"]) == 0
    assert capsys.readouterr().out.startswith("no runs in ")
    assert main(["runs", f"{tmp_path}/absent"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7300, "2 h"), (2e5, "2 d")]
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_damaged_files_cost_a_cell_and_not_the_table(tmp_path: Path) -> None:
    write_run(str(tmp_path), "odd", "finished", 100, {"released": True})
    for name in ("config.yaml", "lock.json"):
        (tmp_path / "odd" / name).write_bytes(b"\xff{")
    [row] = list_runs(open_storage(str(tmp_path)))
    assert (row.state, row.step) == ("finished", 100)
    (tmp_path / "odd" / "summary.json").write_bytes(b"{")
    [row] = list_runs(open_storage(str(tmp_path)))
    assert row.state == "unreadable"
    assert "lock.json is damaged" in (row.cause or "")


@pytest.mark.parametrize(
    "text",
    [
        b'{"state": "finished", "step": {"a": 1}}',
        b'{"state": "finished", "step": 100, "metrics": [1]}',
        b'{"state": "finished", "step": 100, "metrics": {"epoch": "x"}}',
        b'{"state": "finished", "step": 100, "metrics": {"epoch": 1e999}}',
        b'{"state": "finished", "step": 100, "config": {"train": 3}, "metrics": {"epoch": true}}',
        b'{"state": ["finished"], "step": 100}',
        b'{"state": "finished", "step": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"state": "finished", "step": 1, "metrics": {"a": "\\ud800"}}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("name", ["summary.json", "lock.json", "run.json"])
def test_one_bad_document_never_takes_the_listing_away(
    tmp_path: Path, text: bytes, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(str(tmp_path), "good", "finished", 100, {"released": True})
    write_run(str(tmp_path), "odd", None, 40)
    (tmp_path / "odd" / name).write_bytes(text)
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "good" in shown
    assert f"{name} is damaged: " in shown or "step: int" in text.decode(errors="ignore")


def test_a_folder_in_a_files_place_costs_its_row(tmp_path: Path) -> None:
    write_run(str(tmp_path), "good", "finished", 100)
    (tmp_path / "odd" / "summary.json").mkdir(parents=True)
    rows = {row.name: row for row in list_runs(open_storage(str(tmp_path)))}
    assert rows["good"].state == "finished"
    assert rows["odd"].state == "unreadable"


def test_a_finished_sweep_is_a_sweep_although_its_folder_has_a_lock(tmp_path: Path) -> None:
    sweep = open_storage(str(tmp_path)).child("sweep")
    document = {
        **{"name": "sweep", "metric": "m", "mode": "min", "space": {}, "search": {}},
        **{"scheduler": {}, "num_trials": 0, "seconds": 1.0, "state": "finished", "trials": []},
        **dict.fromkeys(("started_at", "updated_at"), "2026-01-01T00:00:00+00:00"),
    }
    sweep.write("sweep.json", json.dumps(document).encode())
    lock = this_process(1, "x").model_copy(update={"released": True})
    sweep.write("lock.json", lock.encoded())
    [row] = list_runs(open_storage(str(tmp_path)))
    assert (row.state, row.sweep_state) == ("sweep", "finished")


def test_totals_of_a_plan_in_epochs_are_those_of_the_run(tmp_path: Path) -> None:
    write_run(str(tmp_path), "exact", None, 400, {}, "train.epochs=4")
    record = {"id": "0123456789abcdef", "total_steps": 860}
    (tmp_path / "exact" / "run.json").write_text(json.dumps(record))
    # An old run, whose epoch was written at an evaluation long ago.
    write_run(str(tmp_path), "old", None, 400, {}, "train.epochs=1")
    write_run(str(tmp_path), "done", "finished", 860, {"released": True}, "train.epochs=4")
    rows = {row.name: row for row in list_runs(open_storage(str(tmp_path)))}
    assert rows["exact"].total_steps == 860
    assert rows["old"].total_steps == 400
    assert rows["done"].total_steps == 860


def test_a_run_whose_process_ended_without_a_summary_has_failed(tmp_path: Path) -> None:
    write_run(str(tmp_path), "broke", None, 0, {"released": True})
    [row] = list_runs(open_storage(str(tmp_path)))
    assert row.state == "failed"
    assert "ended by an error" in (row.cause or "")


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(str(tmp_path), "odd", None, 40)
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    config = {"prior": {"kind": evil}, "model": {"latent_dim": evil}}
    summary = {"state": "failed", "step": 3, "config": config, "cause": f"a\n{evil}"}
    (tmp_path / "odd" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "evil\x1b[31m").mkdir()
    (tmp_path / "evil\x1b[31m" / "config.yaml").write_text("run: {name: x}")
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "odd" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


def test_listing_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, aae_dist.cli.inspect\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 0
