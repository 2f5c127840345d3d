"""What a check found: one line, green or red, and of a red one what to do."""

from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 12


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    subject: str
    text: str
    ok: bool
    advice: str = ""
    """What to do; of a red finding only."""


def good(subject: str, text: str) -> Finding:
    """Return a green finding."""
    return Finding(subject, text, True)


def bad(subject: str, text: str, advice: str) -> Finding:
    """Return a red finding."""
    return Finding(subject, text, False, advice)


def lines(findings: Iterable[Finding], colours: bool) -> list[str]:
    """Return the lines to print; colours are for terminals."""
    return [_line(finding, colours) for finding in findings]


def _line(finding: Finding, colours: bool) -> str:
    mark = "ok " if finding.ok else "RED"
    if colours:
        mark = f"\033[{32 if finding.ok else 31}m{mark}\033[0m"
    advice = f" -> {finding.advice}" if finding.advice else ""
    return f"{mark}  {finding.subject:<{WIDTH}} {finding.text}{advice}"
