"""Types of arguments of the command line, which say in words what they take, and of its parsers."""

import argparse
from collections.abc import Callable
from contextlib import suppress

Parsers = argparse._SubParsersAction  # The only name that argparse has for what holds the verbs.


def whole_number(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number within the bounds that are given."""
    wanted = "a whole number"
    wanted += "" if least is None else f" from {least}"
    wanted += "" if most is None else f" to {most}"

    def read(text: str) -> int:
        with suppress(ValueError):
            value = int(text)
            if (least is None or value >= least) and (most is None or value <= most):
                return value
        raise argparse.ArgumentTypeError(f"should be {wanted}, got {text!r}")

    return read


def fraction(text: str) -> float:
    """Return a part of a whole that is not all of it."""
    with suppress(ValueError):
        value = float(text)
        if 0 <= value < 1:
            return value
    raise argparse.ArgumentTypeError(f"should be a number from 0 to below 1, got {text!r}")
