"""MANIFEST.json, the seal of a checkpoint: which bytes belong to it, proved by SHA-256.

It is canonical JSON (sorted keys, no spaces, ASCII) whose last key "sha256" is the hash of all
bytes before that key. Exactly one byte sequence stands for a manifest; no other verifies.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aae_dist.errors import CheckpointError

MANIFEST, DAMAGED = "MANIFEST.json", "DAMAGED.json"
# A manifest has some hundred bytes a file; what is larger is not parsed.
MAX_BYTES = 1 << 20
SCHEMA = 1
"""Version of the layout that is written; docs/reliability.md says what a change of it takes."""
_SHA256 = r"^[0-9a-f]{64}$"
_CLOSING = '"sha256":"%s"}'
_CLOSING_BYTES = len(_CLOSING % ("0" * 64))


class NewerCheckpointError(CheckpointError):
    """The checkpoint was written by a newer version, so it is not damaged, only not readable."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class FileRecord(_Strict):
    """Size in bytes and SHA-256, in hexadecimal digits, of one file."""

    sha256: Annotated[str, Field(pattern=_SHA256)]
    size: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        """Describe these bytes."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Manifest(_Strict):
    """What a checkpoint consists of."""

    attempt: Annotated[int, Field(ge=0)]
    """The fencing number of the writer, see `RunLock`."""
    best: bool
    """Whether it was the best so far, by `train.best_metric`, when it was written."""
    files: Mapping[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.(safetensors|json)$")], FileRecord
    ]
    schema_version: Literal[1] = 1
    step: Annotated[int, Field(ge=0)]

    def sealed(self) -> bytes:
        """Return the one byte sequence that stands for this manifest."""
        fields = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        before = (fields[:-1] + ",").encode("ascii")
        return before + (_CLOSING % hashlib.sha256(before).hexdigest()).encode("ascii")


def unseal(data: bytes) -> Manifest:
    """Return the manifest that `data` stands for; raise CheckpointError unless it verifies."""
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{MANIFEST} has {len(data)} bytes, more than {MAX_BYTES}")
    before, closing = data[:-_CLOSING_BYTES], data[-_CLOSING_BYTES:]
    # The hash comes first: nothing is parsed that was not written by us, or made to look so.
    if closing != (_CLOSING % hashlib.sha256(before).hexdigest()).encode("ascii"):
        raise CheckpointError(f"{MANIFEST} does not match its own SHA-256")
    try:
        manifest = Manifest.model_validate_json(before[:-1] + b"}")
    except ValidationError as error:
        _raise_if_newer(error)
        reason = error.errors()[0]
        place = ".".join(map(str, reason["loc"])) or "JSON"
        raise CheckpointError(f"{MANIFEST}: {place}: {reason['msg']}") from error
    if manifest.sealed() != data:
        raise CheckpointError(f"{MANIFEST} is not in canonical form")
    return manifest


def _raise_if_newer(error: ValidationError) -> None:
    for problem in error.errors():
        version = problem["input"]
        if problem["loc"] == ("schema_version",) and type(version) is int and version > SCHEMA:
            raise NewerCheckpointError(
                f"{MANIFEST} is of schema {version}, this version of aae_dist reads up to "
                f"{SCHEMA}; install the version that wrote it"
            ) from error
