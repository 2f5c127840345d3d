"""Help, completion, and what both cost."""

import os
import re
import resource
import subprocess
import sys
import time

import click
import pytest

from aae_dist.cli import main
from aae_dist.cli.inspect import MEANINGS
from aae_dist.cli.main import COMPLETION, cli


def leaves(group, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


VERBS = list(leaves(cli))


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_the_help_of_a_verb_is_written_by_hand_and_complete(path, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*path, "-h"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: aae-dist {' '.join(path)} [OPTIONS]")
    assert re.search(r"^examples?:\n  aae-dist ", out, re.M)
    assert all(len(line) <= 100 for line in out.splitlines())
    for line in (command.help or "").splitlines() + (command.epilog or "").splitlines():
        assert line.strip() in out, "lines stay as they are"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert parameter.help, f"{parameter.name} says nothing"
        assert parameter.human_readable_name in out or parameter.opts[-1] in out


def test_results_of_vectors_are_not_called_images_or_pixels():
    helps = [str(command.help) for path, command in VERBS if path in (("evaluate",), ("runs",))]
    told = " ".join([*MEANINGS, *MEANINGS.values(), *helps])
    assert len(helps) == 2
    assert "squared error per value" in told
    assert not re.search("pixel|image", told)


def test_the_first_page_lists_all_verbs_in_groups(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in cli.commands.items():
        assert re.search(rf"^  {name} +{command.short_help[:20]}", out, re.M), name
    assert "exit codes:" in out


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("aae-dist t", {"train", "tune"}),
        ("aae-dist data ", {"pack", "index", "verify", "dimension"}),
        ("aae-dist data pack m", {"mnist"}),
        ("aae-dist encode run --format ", {"parquet", "npy"}),
        ("aae-dist submit --fo", {"--follow"}),
    ],
)
def test_shells_complete_verbs_options_and_values(line, wanted, capsys, monkeypatch):
    monkeypatch.setenv(COMPLETION, "bash_complete")
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    found = {item.removeprefix("plain,") for item in capsys.readouterr().out.splitlines()}
    assert found == wanted


def test_shells_complete_files_where_a_file_may_stand(capsys, monkeypatch):
    monkeypatch.setenv(COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "aae-dist train con")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert main([]) == 0
    assert capsys.readouterr().out == "file,con\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shells_start_up_file(shell, capsys, monkeypatch):
    monkeypatch.setenv(COMPLETION, f"{shell}_source")
    assert main([]) == 0
    assert COMPLETION in capsys.readouterr().out


LOOP_SECONDS = 0.1
"""CPU time of `loop` on a processor that does nothing else."""


def loop():
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - before


def cpu_seconds(*arguments):
    """Return the CPU time of a command, as on a processor that does nothing else."""
    before, slowness = resource.getrusage(resource.RUSAGE_CHILDREN), loop() / LOOP_SECONDS
    subprocess.run(
        [sys.executable, "-m", "aae_dist", *arguments],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / max(1.0, slowness)


@pytest.mark.run
@pytest.mark.parametrize(("command", "most"), [("--help", 0.5), ("train train.setps=3", 1.0)])
def test_help_costs_less_than_half_a_second_and_a_wrong_configuration_less_than_one(command, most):
    first = cpu_seconds(*command.split())
    # The second time all files are in memory.
    assert first < most or cpu_seconds(*command.split()) < most
