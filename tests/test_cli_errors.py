import subprocess
import sys

import pytest

from aae_dist import errors
from aae_dist.cli import guarded, main
from aae_dist.version import __version__


def raising(error):
    def body():
        raise error

    return body


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
    assert guarded(raising(error)) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "aae-dist: what, got, do\n")


def test_a_fault_of_ours_shows_its_traceback_and_exits_1(capsys):
    assert guarded(raising(ZeroDivisionError("oops"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oops" in err


def test_an_interrupt_from_the_keyboard_exits_130_without_a_traceback(capsys):
    assert guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "aae-dist: stopped from the keyboard\n"


@pytest.mark.parametrize("verb", [[], ["train"], ["evaluate"], ["sample"]])
def test_help_of_every_verb_names_it(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    assert caught.value.code == 0
    assert "usage: " + " ".join(["aae-dist", *verb]) in capsys.readouterr().out


def test_no_verb_shows_the_help_and_exits_2(capsys):
    assert main([]) == 2
    assert "verbs:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["trainer"],
        ["train"],
        ["train", "a.yaml", "--dry"],
        ["train", "a.yaml", "--bogus"],
        ["sample", "run", "--num", "0", "--out", "x.png"],
        ["sample", "run"],
        ["export", "run", "more", "--out", "x"],
    ],
)
def test_a_wrong_command_line_exits_2_with_the_usage(argv, capsys):
    if argv == ["train", "a.yaml", "--dry"]:
        argv = ["train", "a.yaml", "--dri"]
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: aae-dist" in capsys.readouterr().err


def test_the_version_is_printed_without_importing_torch():
    code = (
        "import sys\nfrom aae_dist.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, text=True)
    assert (done.returncode, done.stdout) == (0, f"aae-dist {__version__}\n")


def test_a_reader_that_goes_away_makes_no_noise(tmp_path):
    script = f"{sys.executable} -m aae_dist train run.name=a data.train=b train.steps=1 --dry-run"
    done = subprocess.run(
        ["bash", "-c", f"{script} | head -c 1"], capture_output=True, timeout=30, text=True
    )
    assert (done.stdout, done.stderr) == ("r", "")
