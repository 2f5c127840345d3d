"""What the README tells people to type works, typed as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import encoded
from helpers.trained import save_run

from aae_dist.config import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = ("make ", "ray job submit", "aae-dist submit")
"""`make` runs this test; submissions have tests with clusters of their own."""
SMALL = """
run: {name: mine}
data: {train: "builtin://digits/train"}
model: {encoder_widths: [32], decoder_widths: [32], discriminator_widths: [32]}
train: {steps: 20}
"""


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str = README) -> list[str]:
    text = "\n".join(blocks("bash", page)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith(ELSEWHERE)]


@pytest.mark.run
@pytest.mark.timeout(300)
def test_every_command_and_python_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")  # for `encode`; it comes with the extra `ray`
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(SMALL)
    environment = {**os.environ, "HOME": str(tmp_path), "GLOO_SOCKET_IFNAME": "lo"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    assert len(commands()) >= 7
    for command in commands():
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "roll.png").stat().st_size > 1000
    shutil.copytree(tmp_path / "aae_dist" / "runs" / "roll", tmp_path / "runs" / "quickstart")
    for example in blocks("python"):
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=environment, check=True)


def test_the_yaml_example_is_a_valid_configuration(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(example)
    assert load_config([path], []).config.model.latent_dim == 32


def test_the_two_commands_are_named() -> None:
    assert {"make quickstart", "make test"} <= set(blocks("bash")[0].splitlines())


def write_photos(folder: Path) -> None:
    """Write 200 colour JPEG files of several sizes into two class folders."""
    for number in range(200):
        height, width = 40 + number % 9, 60 - number % 7
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels, "JPEG"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_of_the_verbs_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "using.md").read_text()
    save_run(tmp_path / "runs" / "quickstart", best=True, prior={"kind": "mixture"})
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_photos(tmp_path / "photos")
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    for command in [*commands(page), *(f"python -c '{code}'" for code in blocks("python", page))]:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    written = {path.name for path in tmp_path.iterdir()}
    assert {"classes.png", "plane.png", "codes", "codes-npy", "reconstructed", "exported"} < written
    assert {"photos.png", "photo-codes", "photo-networks"} < written
