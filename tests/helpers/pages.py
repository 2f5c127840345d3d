"""Blocks of code and inline code of the documentation, and checks of both without running them."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from aae_dist.cli.main import cli
from aae_dist.config.load import GivenTree, load_config
from aae_dist.config.schema import Tree, from_plain
from aae_dist.config.yaml import parse
from aae_dist.errors import ConfigError
from aae_dist.sweeps.plan import load_sweep

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("c*/README.md")]
BASE = {
    "run": {"name": "x"},
    "data": {"train": "shards", "validation": "shards"},
    "train": {"steps": 4000, "evaluate_every_steps": 500},
}
"""What examples are merged with."""
OTHER_PROGRAMS = {
    *("aws", "base64", "docker", "eksctl", "export", "gcloud", "helm", "kind", "kubectl", "ray"),
    *("source", "scontrol", "done", "do", "for", "first"),
}
"""Programs that are not ours: their files must exist, their arguments are not known here."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXTRAS = re.compile(r"\[([\w,]+)\]")
_ASSIGNMENT = re.compile(r"\A[A-Za-z_]\w*=")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the blocks of these languages; "" stands for blocks that name none."""
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


def inline(page: Path) -> list[str]:
    """Return the pieces of inline code, line breaks as blanks."""
    prose = _FENCE.sub("", page.read_text())
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, without comments and redirections."""
    text = re.sub(r"\$\([^)]*\)", "X", text.replace("\\\n", " "))
    for line in text.splitlines():
        for part in re.split(r"&&|\|\||;|\|", re.sub(r"(^|\s)#.*$", "", line)):
            words = shlex.split(part)
            while words and (_ASSIGNMENT.match(words[0]) or words[0] in ("do", "srun", "time")):
                words.pop(0)
            if words:
                yield words


def problem_of(words: Sequence[str], is_whole: bool = True) -> str | None:
    """Return what is wrong with a command, None if nothing is, as far as can be told."""
    program, *rest = words
    if "-m" in words and "aae_dist" in words:
        return problem_of_aae_dist(words[words.index("aae_dist") + 1 :], is_whole)
    match program:
        case "aae-dist":
            return problem_of_aae_dist(rest, is_whole)
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return next((f"no target {t}" for t in rest if t not in targets), None)
        case "python" if rest and rest[0].endswith(".py"):
            return _problem_of_script(rest)
        case "pip" | "python" | "pythae/bin/pip":
            return _problem_of_installation(" ".join(rest))
        case _ if program in OTHER_PROGRAMS:
            return next((f"no file {w}" for w in rest if _is_absent(w)), None)
    return f"an unknown program: {program}"


def _is_absent(word: str) -> bool:
    return word.startswith(("cluster/", "configs/", "docs/")) and not (ROOT / word).exists()


def _problem_of_script(words: Sequence[str]) -> str | None:
    script = ROOT / words[0]
    if not script.exists():
        return f"no file {words[0]}"
    text = script.read_text()
    flags = [word for word in words[1:] if word.startswith("--")]
    return next((f"{words[0]} has no {flag}" for flag in flags if flag not in text), None)


def _problem_of_installation(text: str) -> str | None:
    project = (ROOT / "pyproject.toml").read_text()
    for extras in _EXTRAS.findall(text):
        for extra in extras.split(","):
            if not re.search(rf"^{extra} = \[", project, re.MULTILINE):
                return f"no extra {extra}"
    found = re.search(r"-r (\S+)", text)
    return f"no file {found[1]}" if found and not (ROOT / found[1]).exists() else None


def problem_of_aae_dist(arguments: Sequence[str], is_whole: bool = True) -> str | None:
    """Parse a command line of aae-dist; also check its configuration where its files are here.

    Text names commands without all of their arguments: it is not whole.
    """
    command: Any = cli
    context, rest, path = None, list(arguments), []
    try:
        while True:
            context = command.make_context(command.name, list(rest), parent=context)
            if not isinstance(command, click.Group):
                break
            name, command, rest = command.resolve_command(context, _left(context))
            path.append(name)
    except click.exceptions.Exit:  # --help
        return None
    except click.MissingParameter as error:
        return error.format_message() if is_whole else None
    except click.UsageError as error:
        return error.format_message()
    if path[0] in ("train", "tune", "submit"):
        return _problem_of_configuration(context.params["items"])
    items = [i for i in context.params.get("items", ()) if "=" in i and "://" not in i]
    return problem_of_trees([], items)


def _left(context: click.Context) -> list[str]:
    return [*context._protected_args, *context.args]


def _problem_of_configuration(items: Sequence[str]) -> str | None:
    names = [item for item in items if "=" not in item]
    if any(_is_absent(name) for name in names):
        return f"no file among {names}"
    # A reader's own file, or one in a bucket, is not here.
    texts = [(ROOT / name).read_text() for name in names if (ROOT / name).exists()]
    overrides = [item for item in items if "=" in item]
    return problem_of_trees([parse(text, "file") for text in texts], overrides)


def problem_of_trees(trees: Sequence[Tree], overrides: Sequence[str] = ()) -> str | None:
    """Return why layers on top of the smallest configuration are refused, as a run or a sweep."""
    base = {section: from_plain(tree, "base") for section, tree in BASE.items()}
    layers = [GivenTree("base", base), *(GivenTree("example", tree) for tree in trees)]
    is_sweep = any("sweep" in tree for tree in trees)
    if not is_sweep:
        overrides = [item for item in overrides if not item.startswith("sweep.")]
    try:
        load_sweep(layers, overrides) if is_sweep else load_config(layers, overrides)
    except ConfigError as error:
        return str(error)
    return None
