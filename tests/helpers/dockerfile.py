"""A Dockerfile as data: stages of instructions."""

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, the rest of its line), line continuations joined."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def parse(path: Path) -> dict[str, Stage]:
    """Return the stages by name, and under '' what stands before the first FROM."""
    stages = {"": Stage("", "")}
    current = stages[""]
    lines = [line for line in path.read_text().splitlines() if not re.match(r"\s*#", line)]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        instruction, rest = line.strip().split(maxsplit=1)
        if instruction == "FROM":
            parent, _, name = rest.split()
            current = stages[name] = Stage(name, parent)
        else:
            current.steps.append((instruction, re.sub(r"\s+", " ", rest)))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """Return a stage and those it is built from, the first one first."""
    found: list[Stage] = []
    while name in stages:
        found.insert(0, stages[name])
        name = stages[name].parent
    return found
