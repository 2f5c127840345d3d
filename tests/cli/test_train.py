import subprocess
import sys
from pathlib import Path

import pytest

from aae_dist.cli import main
from aae_dist.cli.options import read_items
from aae_dist.config import load_config
from aae_dist.config.yaml import LARGEST_BYTES
from aae_dist.storage import open_storage
from aae_dist.utils.text import number

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


@pytest.mark.run
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


def test_no_more_of_a_file_is_read_than_a_configuration_may_have(capsys):
    assert main(["train", "/dev/zero"]) == 2
    assert "/dev/zero: larger than 1,048,576 bytes, no configuration" in capsys.readouterr().err


def test_an_argument_with_an_equals_sign_is_an_override_unless_a_file_has_that_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("lr=3.yaml").touch()
    assert read_items(["a.yaml", "x=1", "lr=3.yaml", "b.yaml", "y=2"]) == (
        [Path("a.yaml"), Path("lr=3.yaml"), Path("b.yaml")],
        ["x=1", "y=2"],
    )


def test_a_file_in_a_bucket_is_read_like_one_here(s3, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("run: {name: a}\nprior: {kind: gaussian, std: 3}\n")
    address = f"{s3()}/day=1/best.yaml"
    folder, _, name = address.rpartition("/")
    open_storage(folder).write(name, file.read_bytes())
    more = [*BASE[1:], "prior.std=2", "--dry-run"]
    assert main(["train", address, *more]) == 0
    shown = capsys.readouterr().out
    assert main(["train", str(file), *more]) == 0
    assert shown == capsys.readouterr().out
    assert main(["train", f"file://{file}", *more]) == 0


def test_a_mistake_in_a_bucket_names_the_address_and_line(s3, capsys):
    bucket = s3()
    open_storage(bucket).write("a.yaml", b"run: {name: a}\ntrain: {setps: 3}\n")
    assert main(["train", f"{bucket}/a.yaml", *BASE]) == 2
    assert f"train.setps: unknown key, got 3 ({bucket}/a.yaml:2)" in capsys.readouterr().err


def test_a_file_that_is_not_in_the_bucket_is_one_line(s3, capsys):
    bucket = s3()
    assert main(["train", f"{bucket}/gone.yaml", *BASE]) == 2
    assert capsys.readouterr().err == f"aae-dist: {bucket}/gone.yaml: no such file\n"
    assert main(["train", "s3://no-such-bucket-here/gone.yaml", *BASE]) == 2
    assert "the bucket does not exist" in capsys.readouterr().err
    assert main(["train", "ftp://host/a.yaml", *BASE]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_more_of_a_stored_file_is_read_than_a_configuration_may_have(s3, capsys):
    bucket = s3()
    open_storage(bucket).write("a.yaml", b"#" * (LARGEST_BYTES + 1))
    assert main(["train", f"{bucket}/a.yaml", *BASE]) == 2
    assert "a.yaml: larger than 1,048,576 bytes" in capsys.readouterr().err


def test_submit_takes_files_of_a_bucket(s3, capsys):
    bucket = s3()
    open_storage(bucket).write("a.yaml", b"run: {name: a, storage: s3://b/runs}\n")
    items = [f"{bucket}/a.yaml", *BASE[1:], "--address", "http://h:8265", "--dry-run"]
    assert main(["submit", *items]) == 0
    assert "storage: s3://b/runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.0, "12,345"), (0.123456, "0.1235"), (1e-9, "1e-09"), (0, "0"), (float("nan"), "nan")],
)
def test_numbers_in_tables_are_short(value, text):
    assert number(value) == text
