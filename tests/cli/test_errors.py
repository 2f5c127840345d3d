import subprocess
import sys

import numpy as np
import pytest
import torch

from aae_dist import errors
from aae_dist.cli import main, report_error
from aae_dist.version import __version__


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("what, got, do"), 2),
        (errors.DataError("what, got, do"), 2),
        (errors.CheckpointError("what, got, do"), 2),
        (errors.LaunchError("what, got, do"), 2),
        (errors.TrainingDivergedError("what, got, do"), 3),
        (errors.Interrupted("what, got, do"), 4),
    ],
)
def test_an_error_of_ours_is_one_clean_message_and_its_exit_code(error, code, capsys):
    assert report_error(error) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "aae-dist: what, got, do\n")


def test_what_would_command_a_terminal_is_escaped_in_every_error_of_ours():
    error = errors.ConfigError("model.\x1b[2J\u202e\x9b: unknown key\n  next")
    assert str(error) == r"model.\x1b[2J\u202e\x9b: unknown key" + "\n  next"


@pytest.fixture
def raising(monkeypatch):
    """Return a function that makes `aae-dist report` raise."""

    def replace(error):
        def make_report(uri):
            raise error

        monkeypatch.setattr("aae_dist.report.make_report", make_report)

    return replace


def test_a_fault_of_ours_shows_its_traceback_and_exits_1(raising, capsys):
    raising(ZeroDivisionError("oops"))
    assert main(["report", "runs/sweep"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oops" in err


def lack(shape, kind=None):
    """Return the error of torch, or of numpy, about an array that no memory holds."""
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(shape) if kind is None else np.empty(shape, kind)
    return caught.value


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (lambda: lack(10**15), ": 4000000000000000 bytes were asked for"),
        (lambda: lack((10**12, 10**12)), ""),
        (lambda: lack(10**15, "f4"), ": 3.55 PiB were asked for"),
        (lambda: torch.OutOfMemoryError("Tried to allocate 20.00 GiB."), ": 20.00 GiB were ask"),
        (lambda: MemoryError(), ""),
    ],
)  # fmt: skip
def test_memory_that_does_not_suffice_is_one_line_with_advice(raising, capsys, error, size):
    raising(error())
    assert main(["report", "runs/sweep"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"aae-dist: not enough memory{size}")
    assert "train.global_batch_size" in err
    assert err.count("\n") == 1


def test_a_working_directory_that_was_removed_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "aae-dist: the working directory was removed; cd to one that exists\n"
    )


def test_an_interrupt_from_the_keyboard_exits_130_without_a_traceback(raising, capsys):
    raising(KeyboardInterrupt())
    assert main(["report", "runs/sweep"]) == 130
    assert capsys.readouterr().err == "aae-dist: stopped from the keyboard\n"


@pytest.mark.parametrize("verb", [[], ["train"], ["evaluate"], ["sample"]])
def test_help_of_every_verb_names_it(verb, capsys):
    assert main([*verb, "--help"]) == 0
    assert "usage: " + " ".join(["aae-dist", *verb]) in capsys.readouterr().out


def test_no_verb_shows_the_help_and_exits_2(capsys):
    assert main([]) == 2
    assert "compare runs:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tarin a.yaml", "there is no 'tarin'; did you mean train? (see aae-dist"),
        ("zzz", "there is no 'zzz'; should be one of train, tune, data, submit"),
        (
            "train",
            "FILE.yaml | key=value is missing (see aae-dist train",
        ),
        ("train a.yaml --dry-rum", "there is no option --dry-rum; did you mean --dry-run?"),
        ("train a.yaml --bogus", "there is no option --bogus (see aae-dist train --help"),
        ("--bogus train a.yaml", "there is no option --bogus (see aae-dist --help"),
        (
            "train a.yaml --train.steps=3",
            "--train.steps=3: an override has no dashes; write train.steps=3 (see aae-dist train",
        ),
        (
            "train a.yaml --train.steps 3 --dry-run",
            "--train.steps: an override has no dashes; write train.steps=3 (see",
        ),
        (
            "train a.yaml -train.steps",
            "-train.steps: an override has no dashes; write train.steps=",
        ),
        (
            "export run --launch.kind=x --out x",
            "there is no option --launch.kind (see aae-dist exp",
        ),
        (
            "sample run --num x --out x.png",
            "--num: should be a whole number from 1, got 'x' (see aae-dist sample --help",
        ),
        (
            "sample run --num 0 --out x.png",
            "--num: should be a whole number from 1, got '0'",
        ),
        ("sample run --seed a --out x.png", "--seed: should be a whole number, got 'a'"),
        ("sample run", "--out is missing (see aae-dist sample --help"),
        ("export run more --out x", "got unexpected extra argument (more) (see"),
        (
            "encode run --out x --format parket",
            "--format: there is no 'parket'; did you mean parquet? (see",
        ),
        (
            "data pack foldr --out x",
            "NAME: there is no 'foldr'; did you mean folder? (see aae-dist data pack",
        ),
        (
            "data pack csv --out x --validation-fraction 1",
            "--validation-fraction: should be a number from 0 to below 1, got '1'",
        ),
        ("data pack csv --out x --seed -1", "--seed: should be a whole number from 0 to 184"),
        ("data pakc", "there is no 'pakc'; did you mean pack? (see aae-dist data --help"),
        ("submit --address http://a", "give a configuration to submit, or the job's name (see"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exits_2(command, message, capsys):
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("aae-dist: ")
    assert message in err
    assert err.endswith(" --help)\n")
    assert err.count("\n") == 1


def test_files_and_overrides_may_stand_on_both_sides_of_an_option(capsys):
    argv = ["train", "run.name=a", "--dry-run", "data.train=b", "train.steps=1"]
    assert main(argv) == 0
    assert "steps: 1" in capsys.readouterr().out


def test_the_version_is_printed_without_importing_torch():
    code = (
        "import sys\nfrom aae_dist.cli import main\n"
        "main(['--version'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, text=True)
    assert (done.returncode, done.stdout) == (0, f"aae-dist {__version__}\n")


def test_help_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom aae_dist.cli import main\n"
        "for verb in (['train'], ['evaluate'], ['report'], ['data', 'pack']):\n"
        "    main([*verb, '--help'])\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.run
def test_a_reader_that_goes_away_makes_no_noise(tmp_path):
    script = f"{sys.executable} -m aae_dist train run.name=a data.train=b train.steps=1 --dry-run"
    done = subprocess.run(
        ["bash", "-c", f"{script} | head -c 1"], capture_output=True, timeout=30, text=True
    )
    assert (done.stdout, done.stderr) == ("r", "")


def test_an_override_may_be_longer_than_a_file_name(capsys):
    shards = [f"s3://bucket/{number:06d}.tar" for number in range(40)]
    argv = ["train", "run.name=a", f"data.train={shards}", "train.steps=1", "--dry-run"]
    assert main(argv) == 0
    assert shards[-1] in capsys.readouterr().out


def test_a_picture_is_not_written_to_a_folder_named_by_a_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "/nowhere", "--out", "$PICTURES/x.png"]) == 2
    assert "$PICTURES would be taken as it is" in capsys.readouterr().err
