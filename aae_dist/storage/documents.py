"""JSON documents of run and sweep folders: bounded in bytes and depth, checked against a schema.

What stands in such a folder may be damaged, or written by another program. One reader for all of
it: a document is what its schema says, or there is one line that names the file and the problem.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from aae_dist.errors import DataError
from aae_dist.storage.base import Storage, join

MAX_BYTES = 4 << 20
"""Largest document; ours have kilobytes. 4 MiB of numbers take 75 MB and 0.5 s when parsed."""
MAX_SWEEP_BYTES = 16 << 20
"""Largest sweep.json, which has 3 MB for 10,000 trials."""
MAX_DEPTH = 32
_MAX_INT = 2**63
_SHOWN = 60  # characters of a wrong value that a message repeats


def _check_tree(value: Any) -> Any:
    _check(value, MAX_DEPTH)
    return value


def _check(value: Any, depth: int) -> None:
    """Raise ValueError for what no document of ours holds: NaN, huge numbers, deep nesting."""
    if depth < 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite")
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError("holds a whole number of more than 64 bits")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _check(item, depth - 1)


Tree = Annotated[Any, AfterValidator(_check_tree)]
"""Any JSON value within the bounds."""
Map = Annotated[dict[str, Any], AfterValidator(_check_tree)]
Count = Annotated[int, Field(ge=0, lt=2**62)]
Seconds = Annotated[float, Field(ge=0)]
Number = float | Annotated[int, Field(ge=-_MAX_INT, lt=_MAX_INT)]
Metrics = dict[str, Number | None]
"""Values by name; None for one that was not finite."""


class Document(BaseModel):
    """Base of the schemas: strict types, finite numbers; keys of newer versions are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


D = TypeVar("D", bound=BaseModel)


def read_document(storage: Storage, key: str, kind: type[D], most: int = MAX_BYTES) -> D | None:
    """Return the document `key` of a folder, of at most `most` bytes; None when it is absent.

    Raises:
        DataError: it is no JSON, too large, or not as its schema says.
    """
    try:
        data = storage.read_range(key, 0, most + 1)
    except FileNotFoundError:
        return None
    return parse_document(data, join(storage.uri, key), kind, most)


def parse_document(data: bytes, name: str, kind: type[D], most: int = MAX_BYTES) -> D:
    """Return the document that `data` holds; DataError, which begins with `name`, if it is none."""
    if len(data) > most:
        raise DataError(f"{name} has more than {most} bytes: it is no file of ours. {_DO}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:_SHOWN]
        where = f"{place}: " if place else ""
        got = "" if first["type"] == "json_invalid" else f" (got {_short(first['input'])})"
        text = f"{where}{first['msg']}{got}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, for instance
        text = str(error).split("\n", 1)[0]
    raise DataError(f"{name} is damaged: {text}. {_DO}")


_DO = "Restore it from a copy, or move it out of the folder"


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return f"a {'map' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > _MAX_INT:
        return "a number of more than 64 bits"
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parse_json(data: bytes) -> Any:
    """Return a JSON value within the bounds; ValueError, in one line, if it is none."""
    try:
        value = from_json(data, allow_inf_nan=False)
        _check(value, MAX_DEPTH)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    return value
