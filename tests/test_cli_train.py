import subprocess
import sys
from pathlib import Path

import pytest

from aae_dist.cli import main
from aae_dist.commands.tables import number
from aae_dist.commands.train import split_items
from aae_dist.config import load_config

BASE = ["run.name=a", "data.train=s3://b/x.tar", "train.steps=5"]


def test_a_dry_run_prints_the_resolved_configuration_and_stops(tmp_path, capsys):
    assert main(["train", *BASE, "--dry-run"]) == 0
    file = tmp_path / "resolved.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config([file]).config == load_config([], BASE).config


def test_options_may_stand_between_files_and_overrides(capsys):
    assert main(["train", "run.name=a", "--dry-run", *BASE[1:], "train.steps=9"]) == 0
    assert "steps: 9" in capsys.readouterr().out


def test_what_merging_dropped_is_noted_on_stderr(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("prior: {kind: mixture, num_modes: 5}\n")
    assert main(["train", str(file), *BASE, "prior.kind=gaussian", "--dry-run"]) == 0
    expected = f"note: prior.num_modes=5 ({file}:1) dropped: prior.kind is now gaussian\n"
    assert capsys.readouterr().err == expected


def test_a_wrong_configuration_exits_2_and_never_imports_torch(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("run: {name: a}\ndata: {train: x}\ntrain: {setps: 3}\n")
    code = (
        "import sys\nfrom aae_dist.cli import main\n"
        f"code = main(['train', {str(file)!r}])\n"
        "sys.exit(99 if {'torch', 'ray', 'numpy'} & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"aae-dist: train.setps: unknown key, got 3 ({file}:3); did you mean train.steps?\n"
    )


def test_a_missing_file_exits_2_and_is_named(capsys):
    assert main(["train", "gone.yaml"]) == 2
    assert "gone.yaml: no such file" in capsys.readouterr().err


def test_an_argument_with_an_equals_sign_is_an_override_unless_a_file_has_that_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("lr=3.yaml").touch()
    assert split_items(["a.yaml", "x=1", "lr=3.yaml", "b.yaml", "y=2"]) == (
        [Path("a.yaml"), Path("lr=3.yaml"), Path("b.yaml")],
        ["x=1", "y=2"],
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.0, "12,345"), (0.123456, "0.1235"), (1e-9, "1e-09"), (0, "0"), (float("nan"), "nan")],
)
def test_numbers_in_tables_are_short(value, text):
    assert number(value) == text
