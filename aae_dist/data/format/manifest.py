"""The shards of a data set with their sample counts, from which the order is computed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import check_key, join

FILE_NAME = "manifest.json"
VERSION = 1
MAX_FILE_BYTES = 512 << 20
_MAX_SHARD_SAMPLES = 10**9
_MAX_SHARD_BYTES = 1 << 50
_MAX_NAME = 1024
_SHARD_NAME = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """One tar file: its address and its expected contents."""

    folder: str
    """URI of the folder that `name` is relative to; not part of the data set's identity."""
    name: str
    """Path below `folder`."""
    samples: int
    bytes: int
    """Size of the file."""
    etag: str | None = None
    """The bucket's tag of this version of the file, when the manifest has one."""

    @property
    def url(self) -> str:
        """The shard's whole address."""
        return join(self.folder, self.name)


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set, in the order that numbers its samples."""

    shards: tuple[Shard, ...]

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of the shards' names and counts: equal ids mean equal sample numbers."""
        entries = [[shard.name, shard.samples] for shard in self.shards]
        return sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of every shard, int64 [shards]."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.counts.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.bytes for shard in self.shards)


def is_shard_name(name: str) -> bool:
    """Return whether `name` ends in .tar, .tar.gz or .tgz."""
    return _SHARD_NAME.search(name) is not None


def dump(shards: Sequence[Shard], folder: str | None = None) -> bytes:
    """Return the file of `shards`, named from the URI `folder`, by default from the file's own."""
    lines = ",\n".join("  " + json.dumps(_entry(shard)) for shard in shards)
    place = f'"folder": {json.dumps(folder)}, ' if folder is not None else ""
    return f'{{"version": {VERSION}, {place}"shards": [\n{lines}\n]}}\n'.encode()


def _entry(shard: Shard) -> dict[str, str | int]:
    entry: dict[str, str | int] = {
        "name": shard.name,
        "samples": shard.samples,
        "bytes": shard.bytes,
    }
    return entry if shard.etag is None else {**entry, "etag": shard.etag}


def parse(data: bytes, where: str, folder: str, *, may_point_elsewhere: bool) -> Manifest:
    """Return the manifest in `data`; nothing in it is trusted.

    `where` is the file's address, for messages; `folder` the URI of its folder. A local manifest
    may point elsewhere, one from a bucket may not. Raises DataError if it is not JSON, or an entry
    is missing, out of bounds or given twice.
    """
    document = _document(data, where)
    if document.get("version") != VERSION:
        _refuse(where, f"version {document.get('version')!r} is not {VERSION}")
    shards = document.get("shards")
    if not isinstance(shards, list):
        _refuse(where, '"shards" is not a list')
    if "folder" in document:
        folder = _other_folder(document["folder"], where, may_point_elsewhere)
    parsed = tuple(_shard(entry, folder, f"{where}, shard {n}") for n, entry in enumerate(shards))
    names: set[str] = set()
    for shard in parsed:
        if shard.name in names:
            _refuse(where, f"shard {shard.name!r} is listed twice")
        names.add(shard.name)
    return Manifest(parsed)


def _document(data: bytes, where: str) -> Mapping[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        _refuse(where, f"{len(data)} bytes are more than {MAX_FILE_BYTES}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}). {_ADVICE}") from None
    if not isinstance(document, dict):
        _refuse(where, f"got a {type(document).__name__} instead of an object")
    return document


def _other_folder(value: object, where: str, allowed: bool) -> str:
    if not allowed:
        _refuse(where, '"folder" is allowed in a local manifest only')
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME:
        _refuse(where, f'"folder" must be an address (got {value!r:.80})')
    return value


def _shard(entry: object, folder: str, where: str) -> Shard:
    if not isinstance(entry, dict):
        _refuse(where, f"got {entry!r:.80} instead of an object")
    name, etag = entry.get("name"), entry.get("etag")
    if not isinstance(name, str) or len(name) > _MAX_NAME or not is_shard_name(name):
        _refuse(where, f'"name" must be a path that ends in .tar or .tar.gz (got {name!r:.80})')
    try:
        check_key(name)
    except LaunchError:
        _refuse(where, f'"name" must stay below the folder (got {name!r:.80})')
    if etag is not None and (not isinstance(etag, str) or len(etag) > _MAX_NAME):
        _refuse(where, f'"etag" must be a text (got {etag!r:.80})')
    samples = _number(entry, "samples", _MAX_SHARD_SAMPLES, where)
    return Shard(folder, name, samples, _number(entry, "bytes", _MAX_SHARD_BYTES, where), etag)


def _number(entry: Mapping[str, Any], key: str, largest: int, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value <= largest:
        _refuse(where, f'"{key}" must be an integer from 0 to {largest} (got {value!r:.80})')
    return value


_ADVICE = "Write it again with: aae-dist data index PATTERN"


def _refuse(where: str, problem: str) -> NoReturn:
    raise DataError(f"{where}: {problem}. {_ADVICE}")
