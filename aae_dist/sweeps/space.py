"""Search spaces: maps and lists whose terms stand for values still to be chosen.

A term is a map of one key: {grid: [...]}, {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]}
or {randint: [a, b]} with both ends. An option of grid or choice may be a map that holds terms
itself; they are drawn only when that option is: the conditional space.
"""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from typing import Any, Protocol

LISTED = ("grid", "choice")
RANGES = ("uniform", "loguniform", "randint")
TERMS = (*LISTED, *RANGES)
OPEN = "arguments"
"""Key of a section whose keys are the user's own, so that none of them is misspelt."""


class Draw(Protocol):
    """Where choices come from: a random generator, or Optuna. Names tell the choices apart."""

    def index(self, name: str, count: int) -> int:
        """Return a number from 0 to count - 1."""

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        """Return a number from low to high, uniform in itself or in its logarithm."""

    def whole(self, name: str, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""


def term_of(node: Any) -> str | None:
    """Return the name of the term that `node` is, None for any other value."""
    name = next(iter(node)) if isinstance(node, Mapping) and len(node) == 1 else None
    return name if name in TERMS else None


def misspelt_term(node: Any) -> tuple[str, str] | None:
    """Return a misspelt name of a term and the right one; None for any other value."""
    if isinstance(node, Mapping) and len(node) == 1 and term_of(node) is None:
        [(name, options)] = node.items()
        # No key of a section is as near to a term as 0.7.
        close = get_close_matches(str(name).lower(), TERMS, 1, cutoff=0.7)
        if close and isinstance(options, list):
            return str(name), close[0]
    return None


def has_terms(node: Any, kinds: tuple[str, ...] = TERMS) -> bool:
    """Return whether `node` is, or holds anywhere, a term of one of `kinds`."""
    if term_of(node) in kinds:
        return True
    if isinstance(node, Mapping):
        return any(has_terms(child, kinds) for child in node.values())
    return isinstance(node, list) and any(has_terms(child, kinds) for child in node)


def problems(node: Any, path: str, inside_choice: bool = False) -> Iterator[str]:
    """Yield one line for every term that is not well formed."""
    name = term_of(node)
    if name in LISTED:
        yield from _listed_problems(name, node[name], path, inside_choice)
    elif name in RANGES:
        if (text := _range_problem(name, node[name])) is not None:
            yield f"{path}.{name}: should be [low, high] with low < high{text}, got {node[name]}"
    elif OPEN not in path.split(".") and (misspelt := misspelt_term(node)):
        yield f"{path}: {misspelt[0]} is no term; did you mean {misspelt[1]}?"
    elif isinstance(node, Mapping):
        if strays := [key for key in node if key in TERMS]:
            yield (
                f"{path}: a term stands alone in its map, got the keys {', '.join(node)}; "
                f"keep one of {', '.join(strays)}"
            )
        for key, child in node.items():
            yield from problems(child, f"{path}.{key}", inside_choice)


def _listed_problems(name: str, options: Any, path: str, inside_choice: bool) -> Iterator[str]:
    if name == "grid" and inside_choice:
        yield f"{path}.grid: a grid cannot stand inside a choice; write choice"
    if not isinstance(options, list) or not options:
        yield f"{path}.{name}: should be a list of one or more, got {options!r}"
        return
    for number, option in enumerate(options):
        if option in options[:number]:
            yield f"{path}.{name}: duplicate option {option!r}; remove one"
        yield from problems(option, f"{path}.{name}.{number}", inside_choice or name == "choice")


def _range_problem(name: str, bounds: Any) -> str | None:
    """Return the requirement that the bounds of a range do not meet, None if they meet all."""
    text = {"randint": ", both whole numbers", "loguniform": ", both above 0"}.get(name, "")
    kind = int if name == "randint" else int | float
    if not isinstance(bounds, list) or len(bounds) != 2:
        return text
    if any(isinstance(b, bool) or not isinstance(b, kind) or not math.isfinite(b) for b in bounds):
        return text
    low, high = bounds
    return text if low >= high or (name == "loguniform" and low <= 0) else None


def grid_points(node: Any) -> list[Any]:
    """Return `node` once for each combination of its grids, in order; other terms stay."""
    name = term_of(node)
    if name == "grid":
        return [point for option in node["grid"] for point in grid_points(option)]
    if name is None and isinstance(node, Mapping):
        rows = product(*(grid_points(child) for child in node.values()))
        return [dict(zip(node, row, strict=True)) for row in rows]
    return [node]


def num_points(node: Any) -> int:
    """Return how many points `grid_points` returns, without making them."""
    name = term_of(node)
    if name == "grid":
        return sum(num_points(option) for option in node["grid"])
    if name is None and isinstance(node, Mapping):
        return math.prod(map(num_points, node.values()))
    return 1


def drawn(node: Any, draw: Draw, name: str) -> Any:
    """Return `node` with each of its terms replaced by a value; `name` is its dotted path."""
    term = term_of(node)
    if term in LISTED:
        options = node[term]
        index = draw.index(name, len(options))
        # The option's number keeps equal keys of different options apart.
        return drawn(options[index], draw, f"{name}#{index}")
    if term == "randint":
        return draw.whole(name, *node[term])
    if term is not None:
        low, high = map(float, node[term])
        return draw.real(name, low, high, log=term == "loguniform")
    if isinstance(node, Mapping):
        return {key: drawn(child, draw, f"{name}.{key}") for key, child in node.items()}
    return node
