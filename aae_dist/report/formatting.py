"""Text of numbers and swept values in the report."""

import math
from collections.abc import Mapping
from typing import Any

from aae_dist.tracking.sinks import LABELS

NONE = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def measured(value: float | None) -> str:
    """Return a measurement with four significant digits, zeros among them: columns line up."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:#.4g}".rstrip(".")


def label(metric: str) -> str:
    """Return the display name of a metric."""
    return LABELS.get(metric, metric)


def format_value(value: Any) -> str:
    """Return a swept value on one line: `mixture, num_modes 5` for a structural one."""
    if isinstance(value, Mapping):
        rest = [f"{k} {format_value(v)}" for k, v in value.items() if k != "kind"]
        return ", ".join([*([str(value["kind"])] if "kind" in value else []), *rest])
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return number(value) if isinstance(value, int | float) else str(value)
