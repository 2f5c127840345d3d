"""configs/README.md lists every file of configs/ with what its first comment says of it."""

import re
from pathlib import Path

import pytest
import yaml

from aae_dist.cli.data import PACKED

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
ROW = re.compile(r"^\| `(configs/\S+\.yaml)` \| (.*) \|$", re.MULTILINE)


def comment(path: Path) -> str:
    """Return the comment that a file begins with, as one line."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def gives(path: Path) -> str:
    """Return the first sentence of a file's comment, without its stop, as a cell of a table."""
    return re.split(r"\.(?: |$)", comment(path))[0].replace("|", r"\|")


def test_the_table_of_configs_has_every_file_and_what_it_gives() -> None:
    wanted = [(path.relative_to(ROOT).as_posix(), gives(path)) for path in FILES]
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in wanted)
    found = ROW.findall((ROOT / "configs" / "README.md").read_text())
    assert found == wanted, f"the rows should be:\n{rows}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shards_are_where_the_command_that_a_file_names_puts_them(path: Path) -> None:
    commands = re.findall(r"aae-dist data pack (\S+) .*?--out (\S+)", comment(path))
    text = path.read_text()
    folders = set(re.findall(r": (shards/\S+)/(?:train|validation)\n", text))
    assert folders == {out for _, out in commands}
    assert all(name in PACKED for name, _ in commands)
    assert yaml.safe_load(text)
