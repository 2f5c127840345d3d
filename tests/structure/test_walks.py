"""The walks through the code in CONTRIBUTING.md name files and functions that exist."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALKS = ("A batch from shard to optimizer", "A sweep from command to report")
SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?(\(\))?")


def walks() -> dict[str, str]:
    sections = dict(SECTION.findall((ROOT / "CONTRIBUTING.md").read_text()))
    return {title: text for title, text in sections.items() if title in WALKS}


def defined_names(paths: Iterable[Path]) -> set[str]:
    """Return every function and class of these files, those of a class also as Class.name."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = (n for n in node.body if isinstance(n, ast.FunctionDef))
                found.update(f"{node.name}.{each.name}" for each in inner)
    return found


def test_both_walks_are_there() -> None:
    assert set(walks()) == set(WALKS)


@pytest.mark.parametrize(("title", "text"), walks().items(), ids=walks().keys())
def test_files_and_functions_of_a_walk_exist(title: str, text: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", text)
    paths = [q for q in quoted if "/" in q]
    names = [q.removesuffix("()") for q in quoted if "/" not in q and NAME.fullmatch(q)]
    assert paths
    assert [p for p in paths if not (ROOT / p).exists()] == []
    defined = defined_names(ROOT / path for path in paths if path.endswith(".py"))
    assert [n for n in names if n not in defined] == []


def test_places_for_new_things_exist() -> None:
    """The table names files and folders below the package or the repository."""
    page = dict(SECTION.findall((ROOT / "CONTRIBUTING.md").read_text()))["Where does X go?"]
    paths = [q for q in re.findall(r"`([^`\n ]+)`", page) if "/" in q]
    assert len(paths) > 20
    assert [p for p in paths if not any((r / p).exists() for r in (ROOT, ROOT / "aae_dist"))] == []
