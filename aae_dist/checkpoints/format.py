"""Weights in a checkpoint: those in training, and their exponential moving average."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors, save as format_tensors

from aae_dist.data.bad_samples import MAX_LISTED_BYTES
from aae_dist.errors import CheckpointError
from aae_dist.models import Networks
from aae_dist.storage.documents import Map

MANIFEST, DAMAGED = "MANIFEST.json", "DAMAGED.json"
SCHEMA = 1
"""Version of the layout that is written; docs/reliability.md says what a change of it takes."""
MAX_MANIFEST_BYTES = 1 << 20
"""A manifest has some hundred bytes per file; a larger one is not parsed."""
MAX_METADATA_BYTES = MAX_LISTED_BYTES + (16 << 20)
"""Limit of a JSON file, which takes many times as much memory when parsed. Ours have kilobytes
next to the list of bad samples, so a run whose list is within its own limit can always be saved.
"""
_TENSORS, _METADATA = ".safetensors", ".json"
_SHA256 = r"^[0-9a-f]{64}$"
_CLOSING = '"sha256":"%s"}'
_CLOSING_BYTES = len(_CLOSING % ("0" * 64))
_INT64 = 2**62
"""Positions and sample counts are added as int64."""

Tensors = Mapping[str, Mapping[str, torch.Tensor]]
Metadata = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint; its tensors lie in CPU memory that nothing else uses."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    """By file name without suffix, then by tensor name."""
    metadata: dict[str, Any]
    """JSON values, by file name without suffix."""


def snapshot(tensors: Tensors, into: Tensors | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Copy tensors of any device to CPU memory, each into memory of its own.

    `into` is an earlier snapshot that is no longer used: writing into its memory takes half the
    time, as the kernel does not have to allocate and clear new pages. CheckpointError if a tensor
    is sparse or quantized, which safetensors cannot hold.
    """
    old = into or {}
    return {
        file: {
            name: _copy(f"{file}: {name}", tensor, old.get(file, {}).get(name))
            for name, tensor in group.items()
        }
        for file, group in tensors.items()
    }


def _copy(name: str, tensor: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else tensor.layout
        raise CheckpointError(f"{name} is {kind}; only dense tensors are saved. Call to_dense().")
    fits = old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype)
    copy = old if fits else torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    assert copy is not None
    return copy.copy_(tensor.detach())


def encode_tensors(tensors: Tensors) -> dict[str, bytes]:
    """Return the safetensors files by name."""
    return {name + _TENSORS: format_tensors(dict(g)) for name, g in tensors.items()}


def encode_metadata(metadata: Metadata) -> dict[str, bytes]:
    """Return the JSON files by name; CheckpointError if one is too large to be read again."""
    # Without spaces: a long list of bad samples is written in a quarter of the time.
    files = {
        name + _METADATA: json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        for name, value in metadata.items()
    }
    for name, data in files.items():
        check_size(name, len(data))
    return files


def decode(step: int, files: Mapping[str, bytes]) -> Checkpoint:
    """Parse the files of a checkpoint; raise CheckpointError for one that cannot be parsed."""
    checkpoint = Checkpoint(step, {}, {})
    for file, data in files.items():
        try:
            if file.endswith(_TENSORS):
                checkpoint.tensors[file.removesuffix(_TENSORS)] = parse_tensors(data)
            else:
                checkpoint.metadata[file.removesuffix(_METADATA)] = from_json(
                    data, allow_inf_nan=False
                )
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be parsed: {error}") from error
    return checkpoint


def check_size(name: str, size: int) -> None:
    """Raise CheckpointError for a JSON file that is too large to be read."""
    if name.endswith(_METADATA) and size > MAX_METADATA_BYTES:
        raise CheckpointError(f"{name} is larger than {MAX_METADATA_BYTES} bytes")


class NewerCheckpointError(CheckpointError):
    """A newer version wrote the checkpoint: it is not damaged, but this version cannot read it."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class FileRecord(_Strict):
    """Size in bytes and SHA-256, in hexadecimal digits, of one file."""

    sha256: Annotated[str, Field(pattern=_SHA256)]
    size: Annotated[int, Field(ge=0)]

    @classmethod
    def describe(cls, data: bytes) -> "FileRecord":
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Manifest(_Strict):
    """The files of a checkpoint, and which save wrote them."""

    attempt: Annotated[int, Field(ge=0)]
    """The fencing number of the writer, see `RunLock`."""
    best: bool
    """Whether it was the best so far, by `train.best_metric`, when it was written."""
    files: Mapping[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.(safetensors|json)$")], FileRecord
    ]
    schema_version: Literal[1] = 1
    step: Annotated[int, Field(ge=0)]

    def serialize(self) -> bytes:
        """Return the one byte sequence that stands for this manifest."""
        fields = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        before = (fields[:-1] + ",").encode("ascii")
        return before + (_CLOSING % hashlib.sha256(before).hexdigest()).encode("ascii")

    @classmethod
    def verify(cls, data: bytes) -> "Manifest":
        """Return the manifest that `data` stands for; raise CheckpointError if it is not proved."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise CheckpointError(
                f"{MANIFEST} has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}"
            )
        before, closing = data[:-_CLOSING_BYTES], data[-_CLOSING_BYTES:]
        # The hash comes first: nothing is parsed that was not written by us, or made to look so.
        if closing != (_CLOSING % hashlib.sha256(before).hexdigest()).encode("ascii"):
            raise CheckpointError(f"{MANIFEST} does not match its own SHA-256")
        try:
            manifest = cls.model_validate_json(before[:-1] + b"}")
        except ValidationError as error:
            _raise_if_newer(error)
            reason = error.errors()[0]
            place = ".".join(map(str, reason["loc"])) or "JSON"
            raise CheckpointError(f"{MANIFEST}: {place}: {reason['msg']}") from error
        if manifest.serialize() != data:
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


# The metadata, checked when a run resumes: a file that verifies may still hold impossible values.


class _BadEntry(_Strict):
    shard: str
    sample: int | None = Field(ge=0, lt=_INT64)
    key: str | None
    reason: str
    detail: str
    samples: int = Field(ge=0, lt=_INT64)
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)


class _BadSamplesMetadata(_Strict):
    entries: list[_BadEntry] = Field(default_factory=list)
    num_holes: int = Field(default=0, ge=0, lt=_INT64)
    in_a_row: int = Field(default=0, ge=0, lt=_INT64)


class StateMetadata(_Strict):
    """The value of `TrainState.metadata`; fields that older versions lack have a default."""

    step: int = Field(ge=0, lt=_INT64)
    position: int = Field(ge=0, lt=_INT64)
    best: float | None = None
    samples_shift: int = Field(default=0, gt=-_INT64, lt=_INT64)
    bad_samples: _BadSamplesMetadata = Field(default_factory=_BadSamplesMetadata)
    lr_factor: float = Field(default=1.0, gt=0, le=1)
    micro_batch: list[Annotated[int, Field(gt=0, lt=_INT64)]] = Field(
        default_factory=list, max_length=3
    )
    best_metric_id: str = Field(default="", alias="best_of")
    best_num_samples: float | None = Field(default=None, ge=0, lt=_INT64)
    average_is_inherited: bool = False


class ImageMetadata(BaseModel):
    """The part of `DataMetadata` that a trained run needs."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    image_shape: Annotated[
        list[Annotated[int, Field(gt=0, lt=_INT64)]], Field(min_length=2, max_length=4)
    ]
    classes: dict[str, Annotated[int, Field(ge=0, lt=_INT64)]] = Field(default_factory=dict)


DEFAULTS = 2
"""Revision of what null stands for in a configuration, such as `method.weight`."""


class DataMetadata(ImageMetadata):
    """The value of `TrainingData.metadata`."""

    model_config = ConfigDict(extra="forbid")

    manifest: str
    num_samples: int = Field(gt=0, lt=_INT64)
    lanes: int = Field(gt=0, lt=_INT64)
    shuffle_window: Literal["full"] | Annotated[int, Field(gt=0, lt=_INT64)]
    baseline_loss: float | None = Field(default=None, gt=0)
    defaults: int = Field(default=1, gt=0)


class ConfigMetadata(RootModel[dict[str, Map]]):
    """The configuration, by section."""


def check_metadata(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the documents hold what a run that resumes needs."""
    state = _checked(checkpoint, "state", StateMetadata)
    if state.step != checkpoint.step:
        raise CheckpointError(f"checkpoint {checkpoint.step} holds the state of step {state.step}")
    _checked(checkpoint, "data", DataMetadata)


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration, a map of maps; CheckpointError if there is none."""
    return _checked(checkpoint, "config", ConfigMetadata).root


def images_of(checkpoint: Checkpoint) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return (C, H, W), or the shape of other samples, and the labels by name.

    CheckpointError if there is no shape.
    """
    data = _checked(checkpoint, "data", ImageMetadata)
    return tuple(data.image_shape), data.classes


M = TypeVar("M", bound=BaseModel)


def _checked(checkpoint: Checkpoint, name: str, kind: type[M]) -> M:
    try:
        return kind.model_validate(checkpoint.metadata.get(name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise CheckpointError(
            f"checkpoint {checkpoint.step} holds what no run saves: {where}: {first['msg']}"
        ) from None


AVERAGED = ("encoder", "decoder")


class WeightAverage:
    """An exponential moving average of encoder and decoder.

    Its decay starts lower, at (1 + step) / (10 + step), so that the first weights are soon
    forgotten. `networks` are the averaged ones, with the discriminator in training. If it
    `is_inherited`, it started as the average of another run, worth keeping from the first step on.
    """

    def __init__(self, networks: Networks, decay: float) -> None:
        self._live, self._decay = networks, decay
        encoder, decoder = copy.deepcopy(networks.encoder), copy.deepcopy(networks.decoder)
        self.networks = Networks(encoder, decoder, networks.discriminator)
        self.is_inherited = False
        for name in AVERAGED:
            self.networks.named()[name].requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        early = 1.0 if self.is_inherited else (1 + step) / (10 + step)
        share = 1 - min(self._decay, early)
        torch._foreach_lerp_(_tensors(self.networks), _tensors(self._live), share)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the weights in training; also buffers, of a user's networks."""
        torch._foreach_copy_(_tensors(self.networks), _tensors(self._live))
        for name in AVERAGED:
            pairs = (networks.named()[name].buffers() for networks in (self.networks, self._live))
            for mine, live in zip(*pairs, strict=True):
                mine.copy_(live)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages by the names of the weights in a checkpoint."""
        networks = self.networks.named()
        return {
            f"{name}.{key}": tensor
            for name in AVERAGED
            for key, tensor in networks[name].state_dict().items()
        }


def weights_to_use(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the weights to evaluate in a checkpoint: averages where there are any."""
    return {**tensors["model"], **tensors.get("ema", {})}


@torch.no_grad()
def load_weights(networks: Networks, model: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of a checkpoint's `model` file into networks of the same shape."""
    for name, network in networks.named().items():
        for key, tensor in network.state_dict().items():
            saved = model.get(f"{name}.{key}")
            if saved is None or saved.shape != tensor.shape:
                got = "none" if saved is None else tuple(saved.shape)
                raise CheckpointError(
                    f"the checkpoint's weights do not fit: {name}.{key} should have shape "
                    f"{tuple(tensor.shape)} (got {got}); keep model, posterior and method as saved"
                )
            tensor.copy_(saved)


def _tensors(networks: Networks) -> list[torch.Tensor]:
    return [p.detach() for name in AVERAGED for p in networks.named()[name].parameters()]
