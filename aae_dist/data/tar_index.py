"""Where each sample of a tar file begins: WebDataset's grouping of members into samples."""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from aae_dist.data.plain_tar import plain_members
from aae_dist.data.tar_headers import Buffer, DamagedTarError, Numbers, read_members

MAX_SAMPLES = 20_000_000
"""Samples of one shard; their index takes 2.6 GB, on every rank that reads them."""
MAX_MEMBERS = 10_000
"""Members of one sample."""
_LARGEST_AT_ONCE = 256 << 20
"""Bytes of an archive whose headers are read all at once, which takes up to its size more."""
_MAX_KNOWN = 1000
Place = tuple[int, int]
"""Start and size of a field in its shard, in bytes."""
_META = re.compile(r"__[^/]*__($|/)")


@dataclass
class TarIndex:
    """The samples of one shard; some 130 bytes a sample."""

    keys: list[str] = field(default_factory=list)
    """WebDataset key of every sample."""
    first_fields: Numbers = field(default_factory=lambda: array("q"))
    """Number of each sample's first field; a sample's fields are adjacent."""
    suffixes: list[str] = field(default_factory=list)
    """Name of every field: what follows the first dot of the file name, in lower case."""
    starts: Numbers = field(default_factory=lambda: array("q"))
    sizes: Numbers = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def fields(self, sample: int) -> dict[str, Place]:
        """Return start and size in bytes of each field of the sample."""
        first, names = self.names(sample)
        return {name: self.place(n) for n, name in enumerate(names, first)}

    def names(self, sample: int) -> tuple[int, tuple[str, ...]]:
        """Return the number of the sample's first field, and the names of all its fields."""
        last = sample + 1 == len(self.keys)
        end = len(self.suffixes) if last else self.first_fields[sample + 1]
        first = self.first_fields[sample]
        return first, tuple(self.suffixes[first:end])

    def place(self, number: int) -> Place:
        """Return start and size in bytes of field `number` of the shard."""
        return self.starts[number], self.sizes[number]


def index_tar(buffer: Buffer) -> TarIndex:
    """Return the samples of a whole tar file, 2 to 6 us each.

    Members with the same key that follow one another are a sample, as in webdataset.

    Raises:
        DamagedTarError: The archive does not end properly, a header is wrong, or a sample has two
            members of one name, or there are more of either than an index may hold.
    """
    if isinstance(buffer, bytes) and len(buffer) <= _LARGEST_AT_ONCE:
        plain = plain_members(buffer)
        if plain is not None:
            return _group(plain)
    return _group(read_members(buffer))


def _group(members: Iterator[tuple[str, int, int]]) -> TarIndex:
    index = TarIndex()
    key: str | None = None
    seen: set[str] = set()
    known: dict[str, str] = {}
    for name, start, size in members:
        new_key, suffix = _key_and_suffix(name)
        if new_key is None:
            continue
        if new_key != key:
            key = new_key
            seen.clear()
            if len(index.keys) == MAX_SAMPLES:
                raise DamagedTarError(f"more than {MAX_SAMPLES} samples; write smaller shards")
            index.keys.append(key)
            index.first_fields.append(len(index.suffixes))
        suffix = suffix.lower()
        # One string for all that are equal. Bounded: each member may have a suffix of its own.
        suffix = known.setdefault(suffix, suffix) if len(known) < _MAX_KNOWN else suffix
        if suffix in seen:
            raise DamagedTarError(f"sample {key!r:.200} has two members {suffix!r:.80}")
        if len(seen) == MAX_MEMBERS:
            raise DamagedTarError(f"sample {key!r:.200} has more than {MAX_MEMBERS} members")
        seen.add(suffix)
        index.suffixes.append(suffix)
        index.starts.append(start)
        index.sizes.append(size)
    return index


def _key_and_suffix(name: str) -> tuple[str | None, str]:
    r"""Split a path at the first dot of its last part; None for what webdataset skips.

    webdataset's expression `^((?:.*/|)[^.]+)[.]([^/]*)$` means the same and takes hours for the
    longest of names, being quadratic.
    """
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot <= 0 or (name.startswith("__") and _META.match(name)):
        return None, ""
    line = name.find("\n")
    if dot == base or line >= 0:  # what nearly no name is
        # A part without a dot must end at this one; it begins at a slash before any line break.
        begin = name.rfind("/", 0, dot - 1 if line < 0 else min(line, dot - 1)) + 1
        if "." in name[begin:dot]:
            return None, ""
    return name[:dot], name[dot + 1 :]
