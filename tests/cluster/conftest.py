"""kubectl as a program that records and replays (`helpers/fake_kubectl.py`)."""

import os
import stat
import sys
from pathlib import Path

import pytest
from helpers.manifests import ROOT


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the fake on the path; return the folder of its records."""
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    fake = ROOT / "tests/helpers/fake_kubectl.py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {fake} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    return tmp_path
