"""Documents of a checkpoint, checked: a file that verifies may still say what no run saves."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aae_dist.errors import CheckpointError

_MOST = 2**62
"""Positions and sample counts are added as int64."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _BadEntry(_Strict):
    shard: str
    sample: int | None = Field(ge=0, lt=_MOST)
    key: str | None
    reason: str
    detail: str
    samples: int = Field(ge=0, lt=_MOST)
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)


class BadSamplesDocument(_Strict):
    """What `BadSamples.document` returns."""

    entries: list[_BadEntry] = Field(default_factory=list)
    num_holes: int = Field(default=0, ge=0, lt=_MOST)
    in_a_row: int = Field(default=0, ge=0, lt=_MOST)


class StateDocument(_Strict):
    """What `TrainState.document` returns; what older versions lack has a default."""

    step: int = Field(ge=0, lt=_MOST)
    position: int = Field(ge=0, lt=_MOST)
    best: float | None = None
    samples_shift: int = Field(default=0, gt=-_MOST, lt=_MOST)
    bad_samples: BadSamplesDocument = Field(default_factory=BadSamplesDocument)
    lr_factor: float = Field(default=1.0, gt=0, le=1)
    micro_batch: list[Annotated[int, Field(gt=0, lt=_MOST)]] = Field(
        default_factory=list, max_length=3
    )
    best_of: str = ""
    best_num_samples: float | None = Field(default=None, ge=0, lt=_MOST)
    average_is_inherited: bool = False


class DataDocument(_Strict):
    """What `RunData.document` returns."""

    manifest: str
    num_samples: int = Field(gt=0, lt=_MOST)
    lanes: int = Field(gt=0, lt=_MOST)
    shuffle_window: Literal["full"] | Annotated[int, Field(gt=0, lt=_MOST)]
    image_shape: Annotated[list[Annotated[int, Field(gt=0, lt=_MOST)]], Field(max_length=3)]


def check_documents(step: int, documents: Mapping[str, Any]) -> None:
    """Check state and data of the checkpoint of `step`.

    Raises:
        CheckpointError: A number is missing, of another type, or outside of its range.
    """
    for name, kind in (("state", StateDocument), ("data", DataDocument)):
        try:
            found = kind.model_validate(documents.get(name))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise CheckpointError(
                f"checkpoint {step} holds what no run saves: {where}: {first['msg']}"
            ) from None
        if isinstance(found, StateDocument) and found.step != step:
            raise CheckpointError(f"checkpoint {step} holds the state of step {found.step}")
