"""Text of numbers, durations and swept values."""

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


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as `3 min 20 s`."""
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        count, whole = divmod(whole, size)
        parts.append((count, name))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {name}" for count, name in parts[first : first + 2] if count]
    return " ".join(shown) or f"{seconds:.1f} s"


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
