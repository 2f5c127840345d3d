"""Tests that inject a fault are rows of the table in docs/reliability.md.

A test takes the fixture `row` and says fault and expectation; what it saw and its time are added.
`make faults` runs them with FAULTS_TABLE=docs/reliability.md, which writes the rows into the page;
a run of some of the tests replaces their rows only.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase

import pytest

BEGIN, END = "<!-- faults: written by `make faults` -->", "<!-- end of faults -->"
_rows: dict[str, "Row"] = {}


@dataclass
class Row:
    """A line of the table."""

    number: str
    fault: str
    expected: str
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0
    passed: bool = False

    def text(self) -> str:
        seen = "; ".join(self.seen) or "as expected"
        return f"| {self.number} | {self.fault} | {self.expected} | {seen} | {self.seconds:.0f} s |"


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Callable[..., Row]]:
    """Return a function that names the row; what the test saw is added to its `seen`."""
    made: list[Row] = []

    def make(number: str, fault: str, expected: str) -> Row:
        made.append(Row(number, fault, expected))
        return made[-1]

    started = time.monotonic()
    yield make
    report = getattr(request.node, "call_report", None)
    for each in made:
        each.seconds = time.monotonic() - started
        each.passed = report is not None and report.passed
        _rows[f"{each.number} {each.fault}"] = each


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if call.when == "call":
        item.call_report = report  # type: ignore[attr-defined]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = os.environ.get("FAULTS_TABLE")
    if page and _rows:
        path = Path(page)
        path.write_text(with_rows(path.read_text(), [r for r in _rows.values() if r.passed]))


def with_rows(page: str, rows: list[Row]) -> str:
    """Return the page with these rows in its table; others that stand there stay."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {key_of(line): line for line in table.splitlines() if line.startswith("| ")}
    lines.pop("# fault", None)
    lines |= {f"{row.number} {row.fault}": row.text() for row in rows}
    ordered = sorted(lines, key=lambda key: (int(key.split()[0].rstrip(ascii_lowercase)), key))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    head = ["", f"Last written on {machine}.", ""]
    head += ["| # | fault | expected | seen | time |", "|---|---|---|---|---|"]
    body = "\n".join([*head, *(lines[key] for key in ordered), ""])
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def key_of(line: str) -> str:
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    return f"{cells[0]} {cells[1]}"
