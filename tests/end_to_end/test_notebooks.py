"""The notebooks run from top to bottom, and hold the outputs of a whole execution."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# What a kernel has: IPython's Image is a name in two of them.
DISPLAY = """
import sys, types
display = types.ModuleType("IPython.display")
display.Image = lambda data, width: len(data)
sys.modules["IPython"] = package = types.ModuleType("IPython")
sys.modules["IPython.display"] = package.display = display
package.get_ipython = lambda: None
package.version_info = (9, 0)  # matplotlib asks
"""


def cells(notebook: Path, kind: str = "code") -> list[dict[str, Any]]:
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == kind]


@pytest.mark.run
@pytest.mark.timeout(400)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, tmp_path: Path) -> None:
    code = DISPLAY + "\n".join("".join(cell["source"]) for cell in cells(notebook))
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_notebooks_are_stored_as_a_whole_execution_left_them() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cells", "digits", "own_parts"]
    for notebook in NOTEBOOKS:
        numbers = [cell["execution_count"] for cell in cells(notebook)]
        assert numbers == list(range(1, len(numbers) + 1)), notebook.stem
        outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
        assert not [o for o in outputs if o["output_type"] == "error"], notebook.stem
        assert [o for o in outputs if "image/png" in o.get("data", ())], notebook.stem
        assert notebook.stat().st_size < 2_000_000


def test_notebooks_are_those_of_their_sources() -> None:
    for notebook in NOTEBOOKS:
        source = (ROOT / "tools" / "notebooks" / f"{notebook.stem}.py").read_text()
        for cell in cells(notebook):
            assert "".join(cell["source"]) in source
