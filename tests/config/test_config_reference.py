"""The page that lists every key."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_sections_say() -> None:
    command = [sys.executable, str(ROOT / "tools" / "config_reference.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "configuration.md").read_text() == printed, (
        "run: python tools/config_reference.py > docs/configuration.md"
    )
