"""A prior and an encoder of the user's own, as docs/networks.md shows them, outside the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import TINY, metrics

import aae_dist
from aae_dist.config import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/networks.md").read_text()
OWN = (str(ROOT / "configs/prior/custom.yaml"), str(ROOT / "configs/model/own.yaml"))


def my_parts() -> str:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (example,) = [text for text in examples if "class Encoder" in text]
    return str(example)


@pytest.mark.run
@pytest.mark.timeout(240)
def test_own_parts_train_resume_and_load_from_a_folder_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(my_parts())
    script = Path(sys.executable).with_name("aae-dist")  # unlike python -m, it adds no folder
    storage = [f"run.storage={tmp_path}/runs", "run.name=own", "launch.kind=local"]

    def train(*more: str) -> str:
        done = subprocess.run(
            [script, "train", *more, *TINY, *storage],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    train(*OWN, "train.steps=10")
    assert "resuming" in train(*OWN, "train.steps=20")
    folder = str(tmp_path / "runs" / "own")
    assert metrics(folder)[-1]["step"] == 20
    monkeypatch.syspath_prepend(str(tmp_path))
    run = aae_dist.load_run(folder)
    assert type(run._autoencoder.networks.encoder).__name__ == "Encoder"
    # The page shows the same in one line each.
    lines = dict.fromkeys(re.findall(r"`((?:prior|model): \{[^`]*my_parts:[^`]*\})`", PAGE))
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    shown = load_config([tmp_path / "own.yaml"], [*TINY, "run.name=x", "train.steps=1"]).config
    assert shown.prior == run.config.prior
    assert shown.model == run.config.model
    assert run.reconstruct(run.sample(3)).shape == (3, 1, 28, 28)
