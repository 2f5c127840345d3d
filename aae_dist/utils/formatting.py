"""Numbers and times as text."""

import math

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def four_digits(value: float) -> str:
    """Return four significant digits."""
    return f"{value:.4g}"


def number(value: float) -> str:
    """Return four significant digits; whole numbers in full, with commas."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return four_digits(value)


def clock(seconds: float) -> str:
    """Return a duration as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def age(seconds: float) -> str:
    """Return a duration in its largest unit, for example `3 min`."""
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, for example `3 min 20 s`."""
    whole = round(seconds)
    parts = []
    for size, unit in UNITS:
        count, whole = divmod(whole, size)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or f"{seconds:.1f} s"
