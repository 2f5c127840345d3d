"""The tools that look at the sources: word list and line counts."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def words() -> ModuleType:
    return tool("check_words")


def found(words: ModuleType, path: Path, text: str) -> list[tuple[int, str]]:
    path.write_text(text)
    return [(line, what) for line, what, _ in words.findings(path)]


def test_words_are_found_whole_also_over_the_end_of_a_line(
    words: ModuleType, tmp_path: Path
) -> None:
    text = "Foretold.\nBoth go\n  on, twice a step.\n# Beside it.\n"
    expected = [(2, "go on"), (3, "twice a step"), (4, "Beside")]
    assert found(words, tmp_path / "a.md", text) == expected


def test_general_names_are_refused_as_definitions_only(words: ModuleType, tmp_path: Path) -> None:
    text = "class Saver:\n    def of(self):\n        end = 1\n        return end\n"
    assert found(words, tmp_path / "a.py", text) == [(1, "Saver"), (2, "of")]


def test_code_lines_are_neither_comment_nor_docstring(tmp_path: Path) -> None:
    structure = tool("structure")
    path = tmp_path / "a.py"
    path.write_text(
        '"""A module."""\n\nimport os\n\n# Why.\nX = """\ntext"""  # end\n"""Field."""\n'
    )
    counted = structure.count_file(path)
    assert (counted.lines, counted.code, counted.imports) == (8, 3, 1)
    assert (counted.comments, counted.docstrings) == (1, 2)
