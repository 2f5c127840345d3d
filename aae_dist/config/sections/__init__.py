"""The base of every configuration section, and its types of numbers."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

LARGEST = 10**15
"""Largest number of anything, far below 2^63: sums of two fit the documents of a run."""
LARGEST_SAMPLES = 2**62
"""Samples that a run may count, as its documents and tensors hold them."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
Cores = Annotated[int, Field(gt=0, le=2**16)]
Duration = Annotated[float, Field(gt=0, le=1e9)]
"""Seconds or minutes; timers of the system fail at more."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
BEYOND = "beyond"
"""Type of the error about what no document can hold."""
_DEEPEST = 16


def _check(value: Any, depth: int = _DEEPEST) -> Any:
    """Return the value if every document of a run can hold it, as it is."""
    wanted = None
    if depth < 0:
        wanted = f"nested at most {_DEEPEST} deep"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        wanted = "of whole numbers of at most 64 bits"
    elif isinstance(value, float) and not math.isfinite(value):
        wanted = "of finite numbers"
    elif isinstance(value, str) and "\0" in value:
        wanted = "of text without a NUL"
    elif isinstance(value, dict) and any(key in ("", "<<") or "\0" in key for key in value):
        wanted = "a map whose keys are neither empty nor <<, and have no NUL"
    if wanted:
        raise PydanticCustomError(BEYOND, "{wanted}", {"wanted": wanted})
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _check(item, depth - 1)
    return value


Free = Annotated[dict[str, Any], AfterValidator(_check)]
"""A map whose keys and values are the user's own: arguments of a class, a search space."""


class Section(BaseModel):
    """A frozen, strict group of settings: unknown keys, lossy conversions and nan are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        # Each section would be compiled alone and again as a part of the whole: 0.2 s.
        defer_build=True,
    )
