"""The Python examples of the documentation run, one page after the other, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.pages import blocks
from helpers.trained import save_run

ROOT = Path(__file__).parents[2]
PAGES = ["docs/python.md", "docs/counts.md", "docs/start.md"]


@pytest.mark.run
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    code = "\n".join(examples)
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_examples_of_trained_runs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path / "runs" / "quickstart", prior={"kind": "mixture"})
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    for code in blocks(ROOT / "docs" / "using.md", "python"):
        exec(compile(code, "using.md", "exec"), names)
    assert names["codes"].shape == (8, 2)
    assert names["again"].shape == (8, 1, 28, 28)
    assert names["of_mode_7"].shape == (5, 1, 28, 28)
