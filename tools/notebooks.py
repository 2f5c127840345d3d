"""Write and execute the notebooks of docs/notebooks from their sources, tools/notebooks/*.py.

    python tools/notebooks.py [NAME ...]

A source is a Python file whose cells begin with `# %%`, or `# %% [markdown]` for text in comments.
Needs the requirement group `docs`.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SOURCES, PAGES = ROOT / "tools" / "notebooks", ROOT / "docs" / "notebooks"
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook(source: str) -> nbformat.NotebookNode:
    """Return the notebook of a source, not executed."""
    found = nbformat.v4.new_notebook()
    parts = _CELL.split(source)[1:]
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()]
            cell = nbformat.v4.new_markdown_cell("\n".join(lines).strip())
        else:
            cell = nbformat.v4.new_code_cell(text.strip())
        cell["id"] = f"cell-{number}"
        found.cells.append(cell)
    return found


def main(names: list[str]) -> None:
    """Write the notebooks of these names, by default all."""
    for source in sorted(SOURCES.glob("*.py")):
        if names and source.stem not in names:
            continue
        page = notebook(source.read_text())
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(page, timeout=600, resources={"metadata": {"path": folder}}).execute()
        for cell in page.cells:
            cell.get("metadata", {}).pop("execution", None)
        nbformat.write(page, PAGES / f"{source.stem}.ipynb")
        print(source.stem)


if __name__ == "__main__":
    main(sys.argv[1:])
