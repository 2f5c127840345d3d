"""Samples of a tar file, from its headers: ustar, pax and GNU long names.

A cut, a wrong checksum and a zeroed header, which Python's tarfile takes for the end of an archive
in streaming mode, are errors here, so no sample gets lost.

`read_members` walks any archive header by header. `plain_members` finds the headers of the
archives that webdataset, tarfile and GNU tar write for short names all at once, in a third of the
time: 7 us less per sample, a tenth of a first pass over small JPEG. It returns None on anything
else and on any damage, which `read_members` then handles or reports.
"""

import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from aae_dist.data.format import tar_headers
from aae_dist.data.format.tar_headers import BLOCK, Buffer, DamagedTarError, Extension, member_name

Numbers: TypeAlias = "array[int]"  # the class itself takes no [] before Python 3.12

_CHECKED_AT_ONCE = 4096  # headers whose checksums numpy adds up together: 2 MiB of them
_ZEROS = bytes(1 << 20)
_REGULAR = frozenset((b"\0", b"0", b"7"))
_EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))
_HAS_NO_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_HARD_LINK, _FOLDER = b"1", b"5"
_UNUSED = {b"2": "symbolic links", b"3": "devices", b"4": "devices", b"6": "pipes"}
LINKS_WITHOUT_FILE = "hard links to no file before them"
OTHER_KINDS = "members of other kinds"
NO_KEY = "files without a key (no suffix, or a name that begins with a dot)"
_HEADER = np.dtype(
    {
        "names": ["name", "size", "kind", "magic", "prefix"],
        "formats": ["S100", "(12,)u1", "S1", "S5", "u1"],
        "offsets": [0, 124, 156, 257, 345],
        "itemsize": BLOCK,
    }
)
_SIZE_WEIGHTS = 8 ** np.arange(10, -1, -1)
_TIME = b" mtime="

ByteRange = tuple[int, int]  # start and size of a field in its shard, in bytes
Bools = np.typing.NDArray[np.bool_]
Bytes = np.typing.NDArray[np.uint8]
MAX_SAMPLES = 20_000_000  # of one shard; their index takes 2.6 GB on every rank that reads them
MAX_MEMBERS = 10_000  # members of one sample
_LARGEST_AT_ONCE = 256 << 20  # bytes read for their headers at once, taking up to as many more
_MAX_KNOWN = 1000
_SMALL_BYTES = 16 << 10
_META = re.compile(r"__[^/]*__($|/)")


class Member(NamedTuple):
    """A regular file in the archive."""

    name: str
    start: int  # byte of the archive at which its data begin
    size: int


@dataclass
class UnusedMembers:
    """Members of an archive that no sample uses, by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # kind -> name of the first one

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, name)


class _Places:
    """Where the files of an archive are, by their names, for hard links to them."""

    def __init__(self) -> None:
        # 24 bytes per file until the first link is met: nearly no archive has one.
        self._hashes: Numbers = array("q")
        self._places: Numbers = array("q")
        self._by_hash: dict[int, int] | None = None

    def add(self, name: str, start: int, size: int) -> None:
        number = len(self._hashes)
        self._hashes.append(hash(posixpath.normpath(name)))
        self._places.extend((start, size))
        if self._by_hash is not None:
            self._by_hash[self._hashes[-1]] = number

    def find(self, name: str) -> ByteRange | None:
        """Return the place of the last file of this name."""
        if self._by_hash is None:
            self._by_hash = {key: number for number, key in enumerate(self._hashes)}
        number = self._by_hash.get(hash(posixpath.normpath(name)))
        return None if number is None else (self._places[2 * number], self._places[2 * number + 1])


def read_members(buffer: Buffer, unused: UnusedMembers | None = None) -> Iterator[Member]:
    """Yield the files of a whole archive, in order; DamagedTarError if it is damaged.

    A hard link is the file that it links to. Links to nothing in the archive, symbolic links and
    devices are no files, and are counted in `unused`.
    """
    headers = _Headers()
    try:
        yield from _members(buffer, headers, unused or UnusedMembers())
    except DamagedTarError:
        # A header overwritten with noise is best described by the first checksum that fails.
        headers.verify()
        raise
    headers.verify()


class _Headers:
    """Header blocks whose checksums are not verified yet."""

    def __init__(self) -> None:
        self._offsets: Numbers = array("q")
        self._blocks = bytearray()

    def add(self, offset: int, block: bytes) -> None:
        self._offsets.append(offset)
        self._blocks += block
        if len(self._offsets) == _CHECKED_AT_ONCE:
            self.verify()

    def verify(self) -> None:
        """Raise for the first header whose bytes do not add up to its checksum."""
        offsets, self._offsets = self._offsets, array("q")
        blocks, self._blocks = self._blocks, bytearray()
        wrong = tar_headers.wrong_checksums(np.frombuffer(blocks, np.uint8).reshape(-1, BLOCK))
        if wrong.any():
            at = offsets[int(wrong.argmax())]
            raise DamagedTarError(f"the header at byte {at} is damaged (wrong checksum)")


def _members(buffer: Buffer, headers: _Headers, unused: UnusedMembers) -> Iterator[Member]:
    """Yield the files; give every header block to `headers`."""
    offset, end, places = 0, len(buffer), _Places()
    long = Extension()
    while True:
        # Read a header, or find the end of the archive.
        header = buffer[offset : offset + BLOCK]
        if len(header) < BLOCK:
            raise DamagedTarError(f"cut off at byte {end}: the end-of-archive mark is missing")
        if header[0] == 0 and not any(header):
            return _check_only_zeros(buffer, offset)
        headers.add(offset, header)
        # Locate its data; an extension header may have given another size.
        kind, size = header[156:157], tar_headers.parse_size(header[124:136], offset)
        start, is_extension = offset + BLOCK, kind in _EXTENSIONS
        if long.size is not None and not is_extension:
            size = long.size
        if kind in _HAS_NO_DATA:
            size = 0
        if start + size > end:
            raise DamagedTarError(f"cut off at byte {end}: a member ends at byte {start + size}")
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        # Parse an extension header: it describes the next member.
        if is_extension:
            is_short = kind == b"x" and size < BLOCK
            if is_short and tar_headers.says_only_a_time(buffer[start : start + size]):
                continue
            long = long.updated(tar_headers.read_extension(kind, buffer, start, size))
            continue
        # Yield a file, or count what is none.
        name, target, long = long.name or member_name(header), long.target, Extension()
        if kind == b"S":
            raise DamagedTarError(f"sparse member {name!r:.200} is not supported")
        place: ByteRange | None = start, size
        if kind == _HARD_LINK:
            place = places.find(target or tar_headers.link_target(header))
        elif kind not in _REGULAR:
            place = None
        if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
            continue
        if place is None or not name:
            known = LINKS_WITHOUT_FILE if kind == _HARD_LINK else OTHER_KINDS
            unused.add(_UNUSED.get(kind, known), name)
            continue
        places.add(name, *place)
        yield Member(name, *place)


def _check_only_zeros(buffer: Buffer, offset: int) -> None:
    for start in range(offset, len(buffer), len(_ZEROS)):
        rest = buffer[start : start + len(_ZEROS)]
        if rest != _ZEROS and any(rest):
            at = start + len(rest) - len(rest.lstrip(b"\0"))
            raise DamagedTarError(
                f"data at byte {at} after an empty header at byte {offset}: "
                "a header was zeroed, or archives were joined"
            )


def plain_members(data: bytes) -> Iterator[tuple[str, int, int]] | None:
    """Return the members of a whole plain archive, as `read_members`; None if it is not plain.

    Plain: regular files and folders with names of up to 100 bytes and octal sizes, and pax headers
    that say no more than a time.
    """
    if len(data) % BLOCK:
        return None
    if len(data) <= _SMALL_BYTES:
        return _few_members(data)
    # Find the blocks that look like headers, and their sizes.
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK)
    headers = np.frombuffer(data, _HEADER)
    numbers = np.flatnonzero(headers["magic"] == b"ustar")
    digits = headers["size"][numbers] - ord("0")  # of uint8: what is below "0" becomes large
    if not numbers.size or (digits[:, :11] > 7).any() or headers["size"][numbers, 11].any():
        return None
    kinds = headers["kind"][numbers]
    is_file, is_time = kinds == b"0", kinds == b"x"
    sizes = np.where(kinds == b"5", 0, digits[:, :11] @ _SIZE_WEIGHTS)
    # Each member must end where the next starts: no header is missed, and none is file content.
    ends = numbers + 1 + (sizes + BLOCK - 1) // BLOCK
    follows = numbers[0] == 0 and bool((numbers[1:] == ends[:-1]).all())
    if not follows or ends[-1] >= len(blocks) or blocks[ends[-1] :].any():
        return None
    if not (is_file | is_time | (kinds == b"5")).all() or headers["prefix"][numbers].any():
        return None
    times = numbers[is_time]
    if times.size and not _say_only_a_time(blocks[times + 1], sizes[is_time]).all():
        return None
    for first in range(0, len(numbers), _CHECKED_AT_ONCE):
        if tar_headers.wrong_checksums(blocks[numbers[first : first + _CHECKED_AT_ONCE]]).any():
            return None
    # Decode the names all at once. A name ends at its first NUL: another one makes one name more.
    files = numbers[is_file]
    text = b"\0".join(headers["name"][files].tolist()).decode("utf-8", "surrogateescape")
    names = text.split("\0") if files.size else []
    if len(names) != len(files) or "" in names:
        return None
    starts = (files + 1) * BLOCK
    return zip(names, starts.tolist(), sizes[is_file].tolist(), strict=True)


def _few_members(data: bytes) -> Iterator[tuple[str, int, int]] | None:
    """Do what `plain_members` does, header by header: numpy's calls cost as much as 25 headers."""
    offset, end, members = 0, len(data), []
    while offset < end and (header := data[offset : offset + BLOCK])[0]:
        start, kind, digits, checksum = (
            offset + BLOCK,
            header[156:157],
            header[124:136],
            header[148:154],
        )
        if header[257:262] != b"ustar" or header[345] or digits[11]:
            return None
        if not (digits[:11].isdigit() and checksum.isdigit()):
            return None
        try:
            size = int(digits[:11], 8) if kind != b"5" else 0
            wanted = int(checksum, 8)
        except ValueError:  # an 8 or a 9
            return None
        # The checksum counts its own field as eight spaces.
        if sum(header) - sum(header[148:156]) + 8 * 32 != wanted or start + size > end:
            return None
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind == b"0":
            name = header[:100].partition(b"\0")[0]
            if not name:
                return None
            members.append((name.decode("utf-8", "surrogateescape"), start, size))
        elif kind != b"5" and not (kind == b"x" and _is_a_time(data[start : start + size])):
            return None
    is_ended = 0 < offset < end and data.count(0, offset) == end - offset
    return iter(members) if is_ended else None


def _is_a_time(record: bytes) -> bool:
    is_time = record[2 : 2 + len(_TIME)] == _TIME and record.endswith(b"\n")
    return is_time and record[:2].isdigit() and int(record[:2]) == len(record)


def _say_only_a_time(records: Bytes, sizes: np.typing.NDArray[np.int64]) -> Bools:
    """Return which blocks, uint8 [n, 512], hold one pax record, 'SIZE mtime=VALUE' and a line."""
    digits = records[:, :2] - ord("0")
    last = records[np.arange(len(records)), np.minimum(sizes, BLOCK) - 1]
    return np.asarray(
        (digits < 10).all(1)
        & (digits @ np.array([10, 1]) == sizes)
        & (records[:, 2 : 2 + len(_TIME)] == np.frombuffer(_TIME, np.uint8)).all(1)
        & (last == ord("\n"))
    )


@dataclass
class TarIndex:
    """The samples of one shard; some 130 bytes per sample."""

    keys: list[str] = field(default_factory=list)  # WebDataset key of every sample
    first_fields: Numbers = field(default_factory=lambda: array("q"))
    """Number of each sample's first field; a sample's fields are adjacent."""
    suffixes: list[str] = field(default_factory=list)
    """Name of every field: what follows the first dot of the file name, in lower case."""
    unused: UnusedMembers = field(default_factory=UnusedMembers)
    starts: Numbers = field(default_factory=lambda: array("q"))
    sizes: Numbers = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.keys)

    def fields(self, sample: int) -> dict[str, ByteRange]:
        """Return start and size in bytes of each field of the sample."""
        first, names = self.names(sample)
        return {name: self.byte_range(n) for n, name in enumerate(names, first)}

    def names(self, sample: int) -> tuple[int, tuple[str, ...]]:
        """Return the number of the sample's first field, and the names of all its fields."""
        last = sample + 1 == len(self.keys)
        end = len(self.suffixes) if last else self.first_fields[sample + 1]
        first = self.first_fields[sample]
        return first, tuple(self.suffixes[first:end])

    def byte_range(self, number: int) -> ByteRange:
        """Return start and size in bytes of field `number` of the shard."""
        return self.starts[number], self.sizes[number]


def index_tar(buffer: Buffer) -> TarIndex:
    """Return the samples of a whole tar file, 2 to 6 us each.

    Members with the same key that follow one another are a sample, as in webdataset. Raises
    DamagedTarError for a damaged archive, a sample with two members of one name, and more of either
    than an index may hold.
    """
    if isinstance(buffer, bytes) and len(buffer) <= _LARGEST_AT_ONCE:
        plain = plain_members(buffer)
        if plain is not None:
            return _group(plain, UnusedMembers())
    unused = UnusedMembers()
    return _group(read_members(buffer, unused), unused)


def _group(members: Iterator[tuple[str, int, int]], unused: UnusedMembers) -> TarIndex:
    index = TarIndex(unused=unused)
    key: str | None = None
    seen: set[str] = set()
    known: dict[str, str] = {}
    for name, start, size in members:
        new_key: str | None
        new_key, dot, suffix = name.partition(".")
        is_odd = "/" in name or "\n" in name or name[:2] == "__"
        if is_odd or not dot or not new_key:  # most names take half the time of the rest
            new_key, suffix = _key_and_suffix(name)
        if new_key is None:
            if not _META.match(name):  # webdataset's own notes are no data
                unused.add(NO_KEY, name)
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
