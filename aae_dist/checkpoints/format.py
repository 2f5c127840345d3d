"""The files of a checkpoint as bytes: safetensors for tensors, JSON for the rest, no pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from aae_dist.data.bad_samples import MAX_LISTED_BYTES
from aae_dist.errors import CheckpointError

TENSORS, DOCUMENT = ".safetensors", ".json"
LARGEST_DOCUMENT = MAX_LISTED_BYTES + (16 << 20)
"""Bytes of a JSON file, which takes many times as much memory when parsed. Ours have kilobytes
beside the list of bad samples, of which a run that lists no more than it may can always be saved.
"""
Tensors = Mapping[str, Mapping[str, Tensor]]
Documents = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds; the tensors lie in CPU memory and share it with nothing."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By file name without ending, then by tensor name."""
    documents: dict[str, Any]
    """By file name without ending."""


def snapshot(tensors: Tensors, into: Tensors | None = None) -> dict[str, dict[str, Tensor]]:
    """Copy tensors of any device to CPU memory, each into memory of its own.

    Args:
        tensors: by file name without ending, then by tensor name.
        into: an earlier snapshot that nobody needs any more: writing into memory that was used
            before takes half the time, as the kernel need not hand out and clear new pages.

    Raises:
        CheckpointError: a tensor is sparse or quantized, which safetensors cannot hold.
    """
    old = into or {}
    return {
        file: {
            name: _copy(f"{file}: {name}", tensor, old.get(file, {}).get(name))
            for name, tensor in group.items()
        }
        for file, group in tensors.items()
    }


def _copy(name: str, tensor: Tensor, old: Tensor | None) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else tensor.layout
        raise CheckpointError(f"{name} is {kind}; only dense tensors are saved. Call to_dense().")
    fits = old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype)
    copy = old if fits else torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    assert copy is not None
    return copy.copy_(tensor.detach())


def encode_documents(documents: Documents) -> dict[str, bytes]:
    """Return the JSON files by name.

    Raises:
        ValueError, TypeError: JSON cannot hold it.
        CheckpointError: a file would be larger than what is read back.
    """
    # Without spaces: a long list of bad samples is written in a quarter of the time.
    files = {
        name + DOCUMENT: json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        for name, document in documents.items()
    }
    for name, data in files.items():
        check_size(name, len(data))
    return files


def check_size(name: str, size: int) -> None:
    """Raise CheckpointError for a JSON file that is too large to be read."""
    if name.endswith(DOCUMENT) and size > LARGEST_DOCUMENT:
        raise CheckpointError(f"{name} is larger than {LARGEST_DOCUMENT} bytes")


def encode_tensors(tensors: Tensors) -> dict[str, bytes]:
    """Return the safetensors files by name."""
    return {name + TENSORS: format_tensors(dict(g)) for name, g in tensors.items()}


def decode(step: int, files: Mapping[str, bytes]) -> Saved:
    """Return what the files hold; raise CheckpointError when one cannot be parsed."""
    saved = Saved(step, {}, {})
    for file, data in files.items():
        try:
            if file.endswith(TENSORS):
                saved.tensors[file.removesuffix(TENSORS)] = parse_tensors(data)
            else:
                saved.documents[file.removesuffix(DOCUMENT)] = json.loads(data)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} cannot be parsed: {error}") from error
    return saved
