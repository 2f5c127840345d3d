"""The shards of a data set with their sample counts, from which the order is computed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, NoReturn

import numpy as np
from pydantic_core import from_json

from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import check_key, is_remote, join

FILE_NAME = "manifest.json"
CLASSES_FILE = "classes.json"
"""Names of classes, in the folder of the shards or in the one above."""
VERSION = 1
MAX_FILE_BYTES = 512 << 20
_MAX_SHARD_SAMPLES = 10**9
_MAX_SHARD_BYTES = 1 << 50
_MAX_NAME = 1024
_MAX_CLASSES = 1_000_000
_MAX_CLASSES_BYTES = 64 << 20
_MAX_LABEL = 10**18
ClassMap = Mapping[str, int]
"""Label of each class by its name, in the order of labels."""
_SHARD_NAME = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
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
    unused: int = 0
    """Members of the archive that no sample uses: links to nothing, names without a key."""

    @property
    def url(self) -> str:
        """The shard's whole address."""
        return join(self.folder, self.name)


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set, in the order that numbers its samples."""

    shards: tuple[Shard, ...]
    classes: ClassMap = field(default_factory=dict, hash=False)
    """Empty where labels have no names; not part of the data set's identity."""
    class_conflict: str = ""
    """How the class maps of its parts differ, if they do; `classes` is then empty."""

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of the shards' names and counts: equal ids mean equal sample numbers."""
        entries = [[shard.name, shard.samples] for shard in self.shards]
        return sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def counts(self) -> np.typing.NDArray[np.int64]:
        """Samples of every shard, int64 [shards]."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @cached_property
    def remote_bytes(self) -> np.typing.NDArray[np.int64]:
        """Bytes of every shard in a bucket or on a web server, -1 of local ones, int64 [shards]."""
        remote = {folder: is_remote(folder) for folder in {shard.folder for shard in self.shards}}
        return np.array([s.bytes if remote[s.folder] else -1 for s in self.shards], np.int64)

    @property
    def names(self) -> dict[int, str]:
        """Name of each label that has one."""
        return {number: name for name, number in self.classes.items()}

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


def dump(
    shards: Sequence[Shard], folder: str | None = None, classes: ClassMap | None = None
) -> bytes:
    """Return the file of `shards`, named from the URI `folder`, by default from the file's own."""
    lines = ",\n".join("  " + json.dumps(_entry(shard)) for shard in shards)
    place = f'"folder": {json.dumps(folder)}, ' if folder is not None else ""
    names = f'"classes": {json.dumps(dict(classes))}, ' if classes else ""
    return f'{{"version": {VERSION}, {place}{names}"shards": [\n{lines}\n]}}\n'.encode()


def _entry(shard: Shard) -> dict[str, str | int]:
    entry: dict[str, str | int] = {
        "name": shard.name,
        "samples": shard.samples,
        "bytes": shard.bytes,
    }
    entry |= {"unused": shard.unused} if shard.unused else {}
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
    classes = _class_map(document.get("classes") or {}, f'{where}, "classes"', _ADVICE)
    return Manifest(parsed, classes)


def parse_classes(data: bytes, where: str) -> ClassMap:
    """Return the class map in a classes.json: a list of names, or an object of name: number.

    Raises DataError if it is neither, a name is given twice, or a number out of bounds.
    """
    advice = 'Write a list of names, ["cat", "dog"], or numbers by name, {"cat": 0, "dog": 1}.'
    if len(data) > _MAX_CLASSES_BYTES:
        raise DataError(f"{where}: {len(data)} bytes are more than {_MAX_CLASSES_BYTES}. {advice}")
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({str(error):.200}). {advice}") from None
    return _class_map(document, where, advice)


def dump_classes(classes: ClassMap) -> bytes:
    """Return a classes.json: a list where the labels are 0, 1, 2, ..., else an object."""
    is_list = list(classes.values()) == list(range(len(classes)))
    return json.dumps(list(classes) if is_list else dict(classes)).encode()


def _class_map(value: object, where: str, advice: str) -> ClassMap:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            doubled = next(name for name in value if value.count(name) > 1)
            raise DataError(f"{where}: names the class {doubled!r:.80} twice. {advice}")
        value = {name: number for number, name in enumerate(value)}
    if not isinstance(value, dict) or len(value) > _MAX_CLASSES:
        raise DataError(f"{where}: no list of at most {_MAX_CLASSES} names. {advice}")
    for name, number in value.items():
        is_label = type(number) is int and 0 <= number < _MAX_LABEL
        if not is_label or not 0 < len(name) <= _MAX_NAME:
            raise DataError(f"{where}: {name!r:.80}: {number!r:.80} is no name: number. {advice}")
    if len(set(value.values())) < len(value):
        raise DataError(f"{where}: two names have one number. {advice}")
    return dict(sorted(value.items(), key=lambda item: item[1]))


def join_classes(maps: Sequence[tuple[str, ClassMap]]) -> tuple[ClassMap, str]:
    """Return the class map of several data sets, and what differs: then the map is empty.

    `maps` are (address, class map); of maps without names nothing is known.
    """
    labels: dict[str, tuple[int, str]] = {}
    names: dict[int, tuple[str, str]] = {}
    for where, classes in maps:
        for name, number in classes.items():
            first, elsewhere = labels.setdefault(name, (number, where))
            other, there = names.setdefault(number, (name, where))
            if first != number:
                return {}, (
                    f"{name!r:.80} is label {first} in {elsewhere} and {number} in {where}; pack "
                    f"both together, or one with --classes of the other"
                )
            if other != name:
                return {}, (
                    f"label {number} is {other!r:.80} in {there} and {name!r:.80} in {where}; pack "
                    f"both together, or one with --classes of the other"
                )
    ordered = sorted(labels, key=lambda name: labels[name][0])
    return {name: labels[name][0] for name in ordered}, ""


def _document(data: bytes, where: str) -> Mapping[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        _refuse(where, f"{len(data)} bytes are more than {MAX_FILE_BYTES}")
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
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
    num_bytes = _number(entry, "bytes", _MAX_SHARD_BYTES, where)
    unused = _number(entry, "unused", _MAX_SHARD_SAMPLES, where) if "unused" in entry else 0
    return Shard(folder, name, samples, num_bytes, etag, unused)


def _number(entry: Mapping[str, Any], key: str, largest: int, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value <= largest:
        _refuse(where, f'"{key}" must be an integer from 0 to {largest} (got {value!r:.80})')
    return value


_ADVICE = "Write it again with: aae-dist data index PATTERN"


def _refuse(where: str, problem: str) -> NoReturn:
    raise DataError(f"{where}: {problem}. {_ADVICE}")
