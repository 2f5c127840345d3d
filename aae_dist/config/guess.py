"""What may be meant by a word that is none of those that are known."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(got: Any, known: Iterable[Any]) -> str:
    """Return `; did you mean NAME?`, or nothing where no known name is near."""
    close = get_close_matches(str(got), [str(name) for name in known], 1)
    return f"; did you mean {close[0]}?" if close and str(got) != close[0] else ""
