"""From patterns to a manifest: shards found, taken from a manifest next to them or counted.

Samples are counted from the tar headers, read in ranges without keeping the shard. A log of what
was counted lets an interrupted `data index` resume.
"""

import contextlib
import json
import os
import posixpath
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from aae_dist.config.sections.run import Cache
from aae_dist.data.cache.directory import own_folder
from aae_dist.data.cache.shard_cache import ShardCache, cache_of, storage_errors
from aae_dist.data.format import reader, tar, tar_headers
from aae_dist.data.format.manifest import FILE_NAME, ClassMap, Manifest, Shard, dump, join_classes
from aae_dist.data.format.patterns import ShardSource, find, is_builtin
from aae_dist.errors import DataError, LaunchError, ShardError
from aae_dist.storage import Entry, Storage, documents, is_remote, open_storage
from aae_dist.utils.text import Show, ordered_map, progress

Counted = tuple[Shard, str]  # a shard with its samples; tag or time of the counted version

_SMALLEST_BYTES = 64 << 10
_LARGEST_BYTES = 8 << 20
_SECONDS = 600.0  # how long one shard may take to arrive


class RemoteBuffer:
    """A remote file, of one version, as a buffer to slice, downloaded in chunks.

    A chunk that continues the last one is twice as large, up to 8 MiB: shards of small files are
    read through. After a gap it is 64 KiB: of large files only the headers are read.
    """

    def __init__(self, storage: Storage, version: Entry) -> None:
        self._storage, self._version = storage, version
        self._key, self._size = version.key, version.size
        self._start, self._chunk = 0, b""
        self._next_bytes = _SMALLEST_BYTES

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: "slice[Any, Any, Any]") -> bytes:
        """Return the bytes of a slice; a slice must not start before the last one."""
        start, stop, _ = key.indices(self._size)
        end = self._start + len(self._chunk)
        if not self._start <= start <= stop <= end:
            kept = self._chunk[start - self._start :] if self._start <= start < end else b""
            # A gap smaller than a chunk is read through: a request costs more than its bytes.
            continues = start - end <= self._next_bytes
            self._next_bytes = (
                min(2 * self._next_bytes, _LARGEST_BYTES) if continues else _SMALLEST_BYTES
            )
            first = start + len(kept)
            last = min(max(stop, first + self._next_bytes), self._size)
            self._start, self._chunk = start, kept + self._download(first, last)
        return self._chunk[start - self._start : stop - self._start]

    def _download(self, start: int, end: int) -> bytes:
        parts = list(self._storage.stream(self._key, start, end, self._version))
        data = b"".join(parts)
        if len(data) != end - start:
            where = f"{self._storage.uri}/{self._key}"
            message = f"{where}: {len(data)} bytes from byte {start} on, wanted {end - start}."
            raise ShardError(message, "unreachable")
        return data


class Opened:
    """The folders of shards that are counted, each opened once: to open one takes 0.1 ms."""

    def __init__(self) -> None:
        self._storages: dict[str, Storage] = {}

    def get(self, folder: str) -> Storage:
        storage = self._storages.get(folder)
        if storage is None:
            storage = self._storages[folder] = open_storage(folder, _SECONDS)
        return storage


def count_shard(
    shard: Shard, before: Counted | None, cache: ShardCache | None, opened: Opened | None = None
) -> Counted:
    """Return the shard with its current number of samples, size and tag.

    Takes an earlier count if the file has not changed since. A cache keeps a remote shard that will
    be read soon; None keeps nothing. `opened` serves several calls. Raises ShardError if the shard
    is absent, damaged or unreachable.
    """
    opened = opened or Opened()
    # A listing has the version of most remote shards: one request fewer per shard.
    found = Entry(shard.name, shard.bytes, shard.etag) if shard.etag else None
    if found is None:
        with storage_errors(shard):
            found = opened.get(shard.folder).stat(shard.name)
            if found is None:
                raise FileNotFoundError
    now = shard
    if (shard.samples, shard.bytes, shard.etag) != (-1, found.size, found.etag):
        now = replace(shard, samples=-1, bytes=found.size, etag=found.etag)
    stamp = found.etag or _time_of(shard, found)
    if before is not None and (before[0].bytes, before[1]) == (now.bytes, stamp):
        return replace(now, samples=before[0].samples, unused=before[0].unused), stamp
    samples, unused = _num_samples(now, found, cache, opened)
    return replace(now, samples=samples, unused=unused), stamp


def _time_of(shard: Shard, found: Entry) -> str:
    """Return the time of change, which tells versions of a file without a tag apart."""
    if is_remote(shard.folder):
        return str(found.modified)
    return str(Path(shard.folder, shard.name).stat().st_mtime_ns)


def try_count_shard(
    shard: Shard, before: Counted | None, cache: ShardCache | None, opened: Opened | None = None
) -> Counted | ShardError:
    """Return the result of `count_shard`, or its error: one bad shard does not end work on many."""
    try:
        return count_shard(shard, before, cache, opened)
    except ShardError as error:
        return error.with_traceback(None)


def _num_samples(
    shard: Shard, found: Entry, cache: ShardCache | None, opened: Opened
) -> tuple[int, int]:
    """Return the samples, and the members that none of them uses."""
    if not is_remote(shard.folder) or cache is not None:
        return reader.count_members(shard, cache)
    # Imported here: remote storage has loaded it, and local shards need no obstore.
    from aae_dist.storage.bucket import RangesRefusedError

    if not shard.name.lower().endswith(".tar"):
        return _count_of_copy(shard)  # gzip has no ranges
    try:
        with storage_errors(shard):
            storage = opened.get(shard.folder)
            try:
                buffer = RemoteBuffer(storage, found)
                # A small shard is read by one request anyway, and indexed faster from its bytes.
                is_small = found.size <= _SMALLEST_BYTES
                return reader.index_counts(
                    tar.index_tar(buffer[0 : found.size] if is_small else buffer)
                )
            except RangesRefusedError:
                return _count_of_copy(shard)
    except tar_headers.DamagedTarError as error:
        raise ShardError(f"{shard.url}: {error}.", error.reason) from None


def _count_of_copy(shard: Shard) -> tuple[int, int]:
    """Count from a temporary copy on the disk."""
    with tempfile.TemporaryDirectory(prefix="aae_dist-count-") as folder:
        cache = ShardCache(Path(folder), None, _SECONDS)
        return reader.count_members(shard, cache)


_MAX_SAMPLES = 10**9
_JOURNAL_ADVICE = "Set XDG_CACHE_HOME to a folder of yours, for notes on what was counted."


class Journal:
    """Counted shards, one per line, in the user's cache directory on this machine.

    Lists of shards in the same folders share a journal: a list without a damaged shard, or with new
    ones, resumes from the counts of the last list.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        folders = sorted({posixpath.dirname(url) for url in urls})
        name = sha256("\n".join(folders).encode()).hexdigest()
        self._path = own_folder("aae_dist-index", _JOURNAL_ADVICE) / f"{name}.jsonl"
        self._urls = frozenset(urls)
        noted = self._read()
        self.entries: dict[str, tuple[Shard, str]] = {
            url: entry for url, entry in noted.items() if url in self._urls
        }
        """Earlier counts by address, with the tag or time of the counted version."""

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, shard: Shard, stamp: str) -> None:
        """Log a counted shard."""
        self._file.write(_line(shard, stamp))

    def remove(self) -> None:
        """Remove these shards: their manifest is written."""
        others = [entry for url, entry in self._read().items() if url not in self._urls]
        if not others:
            self._path.unlink(missing_ok=True)
            return
        part = self._path.with_suffix(f".{os.getpid()}")
        part.write_text("".join(_line(*entry) for entry in others), "utf-8")
        part.replace(self._path)

    def _read(self) -> dict[str, tuple[Shard, str]]:
        found = {}
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                fields = documents.parse_json(line.encode())
                folder, name, samples, size, etag, stamp, unused = fields
                shard = Shard(str(folder), str(name), int(samples), int(size), etag, int(unused))
                url = shard.url
            except (ValueError, TypeError, LaunchError):
                continue  # the last line of a process that was killed
            if 0 <= shard.samples <= _MAX_SAMPLES:
                found[url] = shard, str(stamp)
        return found


def _line(shard: Shard, stamp: str) -> str:
    entry = [shard.folder, shard.name, shard.samples, shard.bytes, shard.etag, stamp, shard.unused]
    return json.dumps(entry) + "\n"


_THREADS = 16  # shards downloaded at once when they must be counted
# Small ones take one request, which waits for the network: 64 at 30 ms are 2,000 per second.
_THREADS_OF_SMALL = 64
_SMALL_BYTES = 1 << 20
_KEPT = "Repair or remove what is named; the same command then counts no other shard again."
_NOT_KEPT = "Repair or remove what is named; aae-dist data index would keep what is counted now."
_NUM_LISTED = 20
_MAX_OUT_OF_REACH = 20  # consecutive unreachable shards, minutes each, that stop the counting
_OUT_OF_REACH = frozenset(("unreachable", "forbidden"))


def open_manifest(
    urls: str | Sequence[str], cache: Cache | None = None, show: Show = progress
) -> Manifest:
    """Return the manifest of the shards that `urls` name.

    A `manifest.json` next to the shards is used; shards that none lists are read and counted.

    Args:
        urls: One or more patterns, folders, manifest files or builtin:// names (see `patterns`).
        cache: Where remote shards that must be counted are kept, to be read later.
        show: Shows how many of them are counted.

    Raises:
        DataError: Nothing is found, there is no permission, or shards are damaged.
    """
    listed = listed_shards(urls)
    uncounted = [shard for shard in listed.shards if shard.samples < 0]
    kept = None if cache is None else cache_of(cache)
    counted = iter(_count(uncounted, show, kept) if uncounted else ())
    shards = tuple(next(counted) if s.samples < 0 else s for s in listed.shards)
    return _checked(replace(listed, shards=shards), urls)


def listed_shards(urls: str | Sequence[str]) -> Manifest:
    """Return the shards that `urls` name; those that no manifest lists have -1 samples."""
    sources = find(urls)
    classes, conflict = join_classes([(source.folder, source.classes) for source in sources])
    shards = tuple(shard for source in sources for shard in _listed(source))
    return Manifest(shards, classes, conflict)


def build_index(
    pattern: str | Sequence[str],
    out: str | Path | None = None,
    show: Show = progress,
    executor: Executor | None = None,
) -> tuple[str, Manifest]:
    """Count the shards that `pattern` names and write their manifest.

    Counts are logged on this machine: called again after a stop, the same call resumes, and counts
    only shards that are new or have changed since. No shard is kept, however large.

    Args:
        pattern: Patterns, folders or builtin:// names; manifests next to the shards are not used.
        out: Local path of the manifest file; by default manifest.json next to the shards.
        show: Shows how many shards are counted.
        executor: Runs the counting, for example on other machines; by default threads of this
            process.

    Returns:
        The address of the manifest file, and the manifest.

    Raises:
        DataError: Nothing is found, shards are damaged (the first of them are named, the others
            are counted before), or the manifest cannot be written. The data sets of this package
            have theirs, which is not written again.
    """
    sources = find(pattern, use_manifests=False)
    if out is None and (own := next((s.folder for s in sources if is_builtin(s.folder)), None)):
        raise DataError(f"{own} is part of aae_dist and has its manifest; give --out FILE.")
    unknown = [_unknown(source, name) for source in sources for name in source.names]
    with Journal([shard.url for shard in unknown]) as journal:
        shards = _count(unknown, show, executor=executor, journal=journal)
    folder = _common_folder(_checked(Manifest(tuple(shards)), pattern).shards)
    start = len(folder.rstrip("/")) + 1
    named = tuple(replace(s, folder=folder, name=s.url[start:]) for s in shards)
    manifest = Manifest(named, *join_classes([(s.folder, s.classes) for s in sources]))
    place, name = folder, FILE_NAME
    if out is not None:
        target = Path(out).expanduser().absolute()
        place, name = str(target.parent), target.name
    _write(manifest, place, name, None if place == folder else folder)
    journal.remove()
    return f"{place}/{name}", manifest


def index_folder(folder: Path, classes: ClassMap | None = None) -> Manifest:
    """Count the .tar files of a local folder and write its manifest.json, with names of classes."""
    place = str(folder.absolute())
    shards = _count([Shard(place, p.name, -1, -1) for p in sorted(folder.glob("*.tar"))])
    manifest = Manifest(tuple(shards), classes or {})
    _write(manifest, place, FILE_NAME, None)
    return manifest


def _write(manifest: Manifest, place: str, name: str, folder: str | None) -> None:
    try:
        open_storage(place).write(name, dump(manifest.shards, folder, manifest.classes))
    except (LaunchError, OSError) as error:
        raise DataError(f"Cannot write the manifest: {error} Give --out FILE.") from error


def _listed(source: ShardSource) -> list[Shard]:
    """Return the source's shards; those that its manifest lacks have -1 samples."""
    shards = source.manifest.shards if source.manifest else ()
    known = {shard.name: shard for shard in shards if shard.folder == source.folder}
    return [known.get(name) or _unknown(source, name) for name in source.names]


def _unknown(source: ShardSource, name: str) -> Shard:
    """Return a shard that is not counted; with its size and tag if a listing has them."""
    entry = source.entries.get(name)
    # A weak tag cannot be asked for, so the time of the version matters, which a listing lacks.
    if entry is None or not entry.etag or entry.etag.startswith("W/"):
        return Shard(source.folder, name, -1, -1)
    return Shard(source.folder, name, -1, entry.size, entry.etag)


def _count(
    shards: Sequence[Shard],
    show: Show = progress,
    cache: ShardCache | None = None,
    executor: Executor | None = None,
    journal: Journal | None = None,
) -> list[Shard]:
    """Return shards with sizes and counts, read in parallel; all are tried before an error."""
    with contextlib.ExitStack() as stack:
        # Count in parallel; shards that the journal has are not read again.
        pool = executor or stack.enter_context(ThreadPoolExecutor(_num_threads(shards)))
        advance = stack.enter_context(show("counting samples", len(shards), "shards"))
        before = journal.entries if journal else {}
        opened = Opened() if executor is None else None  # other machines open their own
        tasks = ((s, before.get(s.url) if before else None, cache, opened) for s in shards)
        done, failed = list[Shard](), CountFailures(len(shards), _KEPT if journal else _NOT_KEPT)
        for found in ordered_map(pool, try_count_shard, tasks):
            advance(1)
            if isinstance(found, ShardError):
                failed.add(found)
                continue
            failed.succeeded()
            done.append(found[0])
            if journal:
                journal.add(*found)
    failed.check()
    return done


def _num_threads(shards: Sequence[Shard]) -> int:
    # Each thread holds up to twice the bytes that it reads at once, so large shards have fewer.
    are_small = all(0 <= shard.bytes <= _SMALL_BYTES for shard in shards)
    return _THREADS_OF_SMALL if are_small else _THREADS


def _checked(manifest: Manifest, urls: str | Sequence[str]) -> Manifest:
    text = urls if isinstance(urls, str) else ", ".join(urls)
    shards = manifest.shards
    if not shards:
        raise DataError(f"{text}: the list of shards is empty; give at least one shard.")
    one_folder = len({shard.folder for shard in shards}) == 1  # names take a tenth of the time
    seen: set[str] = set()
    for shard in shards:
        if (place := shard.name if one_folder else shard.url) in seen:
            raise DataError(f"{text}: names {shard.url} twice; give each shard once.")
        seen.add(place)
    if manifest.num_samples == 0:
        raise DataError(f"{text}: {len(shards)} shards without a sample; check what wrote them.")
    return manifest


def _common_folder(shards: Sequence[Shard]) -> str:
    folders = {posixpath.dirname(shard.url) for shard in shards}
    roots = {_root(folder) for folder in folders}
    if len(roots) > 1:
        raise DataError(f"One manifest cannot span {', '.join(sorted(roots))}; index each alone.")
    root = roots.pop()
    common = posixpath.commonpath([folder[len(root) :] or "/" for folder in folders])
    return root + common.rstrip("/") or "/"


def _root(folder: str) -> str:
    """Return scheme://bucket of a remote folder, '' for a local one."""
    return "/".join(folder.split("/", 3)[:3]) if is_remote(folder) else ""


class CountFailures:
    """Collects the errors of shards that cannot be counted; raised together, `advice` last."""

    def __init__(self, num_shards: int, advice: str) -> None:
        self._num_shards, self._advice = num_shards, advice
        self._first: list[str] = []
        self._num = self._num_consecutive = 0

    def add(self, error: ShardError) -> None:
        """Add one; raise if many consecutive shards are unreachable, so the rest is as well."""
        self._num += 1
        self._num_consecutive = self._num_consecutive + 1 if error.reason in _OUT_OF_REACH else 0
        if len(self._first) < _NUM_LISTED:
            self._first.append(f"  {error}")
        if self._num_consecutive == _MAX_OUT_OF_REACH:
            raise self._error(
                f"{_MAX_OUT_OF_REACH} consecutive shards are unreachable; the rest was not tried:"
            )

    def succeeded(self) -> None:
        """Note that a shard was counted: the others are not consecutive."""
        self._num_consecutive = 0

    def check(self) -> None:
        """Raise DataError that names the first of them, if there are any."""
        if self._num == 1:
            raise DataError(f"{self._first[0].strip()} {self._advice}")
        if self._num:
            raise self._error(f"{self._num} of {self._num_shards} shards cannot be counted:")

    def _error(self, head: str) -> DataError:
        more = [f"  and {self._num - _NUM_LISTED} more"] if self._num > _NUM_LISTED else []
        return DataError("\n".join([head, *self._first, *more, self._advice]))
