"""The rendered manifests, which the other tests read, are what the sources in cluster/ give."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.manifests import RENDERED, ROOT, read

TOOL = ROOT / "tools/render_manifests.py"
ADVICE = "run: python tools/render_manifests.py (needs kubectl or kustomize)"


def test_nobody_changed_a_source_without_rendering_again():
    code = f"import runpy; print(runpy.run_path({str(TOOL)!r})['sources_hash']())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (RENDERED / "SOURCES.sha256").read_text().strip() == done.stdout.strip(), ADVICE


@pytest.mark.run
@pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")),
    reason="neither kubectl nor kustomize is installed; the files are checked without",
)
def test_rendering_gives_the_committed_files(tmp_path: Path):
    subprocess.run([sys.executable, str(TOOL), str(tmp_path)], check=True)
    names = sorted(path.name for path in RENDERED.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        # As objects: versions of kustomize differ in the order of keys at most.
        expected, found = (read((folder / name).read_text()) for folder in (RENDERED, tmp_path))
        assert found == expected, f"{name}: {ADVICE}"
