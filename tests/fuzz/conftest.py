"""The number of cases that the fuzzers of this session ran, at its end."""

import pytest
from helpers.fuzzing import COUNTS, LARGEST, SLOWEST


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("fuzzed")
    for name, count in sorted(COUNTS.items()):
        costs = f"{SLOWEST.get(name, 0.0):.2f} s CPU, {LARGEST.get(name, 0) >> 20} MiB at most"
        terminalreporter.write_line(f"{name:24} {count:8} cases, {costs}")
    terminalreporter.write_line(f"{'all':24} {COUNTS.total():8} cases")
