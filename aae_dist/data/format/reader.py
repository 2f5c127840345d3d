"""Samples of shards by number: each shard is indexed on first use and then read at random."""

import gzip
import io
import os
import resource
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

from aae_dist.data.cache.shard_cache import ShardCache, open_shard
from aae_dist.data.format.manifest import Manifest, Shard
from aae_dist.data.format.tar import ByteRange, TarIndex, UnusedMembers, index_tar
from aae_dist.data.format.tar_headers import Buffer, DamagedTarError
from aae_dist.data.memory import Holders
from aae_dist.errors import AaeDistError, SampleError, SampleReason, ShardError
from aae_dist.storage import is_remote

_MAX_UNPACKED_BYTES = 4 << 30  # bound on a .tar.gz shard, unpacked, and on all that are held
_SMALL_UNPACKED_BYTES, _MAX_UNPACKED_RATIO = 256 << 20, 200
"""Shards of images unpack to one to five times their bytes, gzip's bombs to 1,000 times: 4 MB that
hold up all threads for 20 s. Up to 256 MiB any ratio is taken."""
_UNPACK_CHUNK_BYTES = 1 << 20
_UNPACKING = threading.Lock()
UNPACKED = Holders()
"""Open compressed shards of all data sets."""
_READ_WHOLE_BYTES = 64 << 20  # smaller shards are indexed by one read, not six per sample
_READ_TOGETHER_BYTES = 1 << 16  # fields this close together are one read: 2 us less per field
_RETRY_SECONDS = 60.0  # between tries of a failed shard: each of its samples would wait for it
_RETRY_FACTOR = 10  # what took long to fail waits longer: at most an eleventh of a run waits
MAX_OPEN_UNPLANNED = 2  # remote shards kept open, and so in the cache, without a prefetcher
_MAX_INDEXED_SAMPLES = 4_000_000  # samples whose place is kept in memory, about 0.5 GB
FileVersion = tuple[int, int, int]  # inode, bytes and time of change in ns of a file's version


class ShardReader:
    """One open shard: its samples in the order of the archive.

    Without `check_count` any number of samples is accepted, for counting them. Raises ShardError if
    the file cannot be read, is damaged, or holds another number of samples.
    """

    def __init__(
        self, shard: Shard, check_count: bool = True, cache: ShardCache | None = None
    ) -> None:
        self.shard, self._cache = shard, cache
        self._check_count = check_count
        self._buffer: Buffer | None = None
        self._indexed: FileVersion | None = None
        self.index = self._new_index(self._bytes())

    def __len__(self) -> int:
        return len(self.index)

    def fields(self, sample: int) -> dict[str, bytes]:
        """Return every field of a sample: {name: bytes}."""
        places = self.index.fields(sample)
        return dict(zip(places, self.read(list(places.values())), strict=True))

    def read(self, places: Sequence[ByteRange]) -> list[bytes]:
        """Return the bytes of some fields of a sample, by one read if they lie close together.

        Raises ShardError if the shard cannot be opened; SampleError if these bytes of the open
        shard cannot be read.
        """
        buffer = self._bytes()
        begin, end = min(places)[0], sum(max(places))
        try:
            if len(places) == 1 or end - begin > _READ_TOGETHER_BYTES:
                return [buffer[start : start + size] for start, size in places]
            data = buffer[begin:end]
        except ShardError as error:
            reason: SampleReason = "size" if error.reason == "size" else "unreadable"
            raise SampleError(str(error).rstrip("."), reason) from None
        return [data[start - begin : start - begin + size] for start, size in places]

    @property
    def unpacked_bytes(self) -> int:
        """Memory that holds the contents of a compressed shard; a plain one is read in place."""
        buffer = self._buffer
        return len(buffer) if isinstance(buffer, bytes) else 0

    def open(self) -> None:
        """Open the shard again if need be, and index it again if its local file was replaced."""
        if self._indexed is not None and _identity(self._bytes()) != self._indexed:
            self._buffer = None  # its size may be another one as well
            self.index = self._new_index(self._bytes())
        self._bytes()

    def release(self) -> None:
        """Close the file and drop its contents; keep the index. Reading opens the shard again."""
        self._buffer = None
        UNPACKED.remove(self)

    def _bytes(self) -> Buffer:
        buffer = self._buffer  # once: another thread may release it
        if buffer is None:
            # A ShardFile keeps the file's lock, and with it the copy in the cache.
            with open_shard(self.shard, self._cache) as file, _one_at_once(self.shard):
                buffer = self._buffer = _contents(self.shard, file)
                if isinstance(buffer, bytes):
                    UNPACKED.add(self, len(buffer))
        return buffer

    def _new_index(self, buffer: Buffer) -> TarIndex:
        # Another copy of a remote shard is another file with equal bytes.
        self._indexed = None if is_remote(self.shard.folder) else _identity(buffer)
        try:
            whole = len(buffer) <= _READ_WHOLE_BYTES
            index = index_tar(buffer[0 : len(buffer)] if whole else buffer)
        except DamagedTarError as error:
            raise ShardError(f"{self.shard.url}: {error}.", reason=error.reason) from None
        except (AaeDistError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - bytes of an archive must not end the run
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ShardError(
                f"{self.shard.url}: its headers cannot be read ({what:.200})."
            ) from None
        if self._check_count and len(index) != self.shard.samples:
            raise ShardError(
                f"{self.shard.url}: the shard has {len(index)} samples, the manifest says "
                f"{self.shard.samples}; write the manifest again with: aae-dist data index PATTERN",
                reason="count",
            )
        return index


def _identity(buffer: Buffer) -> FileVersion | None:
    """Return the version of an open file; None for contents in memory."""
    return buffer.identity if isinstance(buffer, ShardFile) else None


def _one_at_once(shard: Shard) -> AbstractContextManager[object]:
    """Return a lock under which a compressed shard is unpacked, and noted before the next one is.

    What others hold is released as one grows, so the bound on bytes is the process's.
    """
    return _UNPACKING if _is_packed(shard) else nullcontext()


def _is_packed(shard: Shard) -> bool:
    return not shard.name.lower().endswith(".tar")


def _contents(shard: Shard, file: BinaryIO) -> Buffer:
    try:
        if _is_packed(shard):
            return _unpacked(shard, file)
        if shard.bytes == 0:
            raise ShardError(f"{shard.url}: the file is empty, not even an empty tar.")
        return ShardFile(file, shard.url)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ShardError(f"{shard.url}: damaged or not gzip ({error}).") from None
    except OSError as error:
        text = f"{shard.url}: cannot read the shard ({error.strerror})."
        raise ShardError(text, reason="unreadable") from None


def _unpacked(shard: Shard, packed: BinaryIO) -> bytes:
    # In chunks: one read would first allocate all that it may return, 4 GiB. An error's traceback
    # would keep what was unpacked until then: it is closed here.
    with gzip.open(packed, "rb") as file, io.BytesIO() as data:
        while chunk := file.read(_UNPACK_CHUNK_BYTES):
            UNPACKED.shrink(_MAX_UNPACKED_BYTES - data.tell() - len(chunk))
            data.write(chunk)
            _check_unpacked(shard, packed, data.tell())
        return data.getvalue()


def _check_unpacked(shard: Shard, packed: BinaryIO, num_bytes: int) -> None:
    if num_bytes > _MAX_UNPACKED_BYTES:
        raise ShardError(
            f"{shard.url}: more than {_MAX_UNPACKED_BYTES >> 30} GiB when unpacked; "
            "write smaller shards, or plain .tar files."
        )
    if num_bytes > _SMALL_UNPACKED_BYTES:
        size = os.fstat(packed.fileno()).st_size
        if num_bytes > size * _MAX_UNPACKED_RATIO:
            raise ShardError(
                f"{shard.url}: unpacks to more than {_MAX_UNPACKED_RATIO} times its {size} bytes; "
                "write a plain .tar file."
            )


class _GzipStream:
    """The contents of a compressed shard as a buffer to slice forwards, of which 1 MiB is held."""

    def __init__(self, shard: Shard, packed: BinaryIO) -> None:
        self._packed, self._size = packed, 0
        with gzip.open(packed, "rb") as file:
            while chunk := file.read(_UNPACK_CHUNK_BYTES):
                self._size += len(chunk)
                _check_unpacked(shard, packed, self._size)
        packed.seek(0)
        self._file = gzip.open(packed, "rb")  # noqa: SIM115 - the shard's own file is closed
        self._start, self._chunk = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: "slice[Any, Any, Any]", /) -> bytes:
        """Return the bytes of a slice; a slice must not start before the last one."""
        start, stop, _ = key.indices(self._size)
        end = self._start + len(self._chunk)
        while end < stop:
            # Keep what is wanted of the chunk, and read the next one.
            kept = self._chunk[max(0, start - self._start) :] if start < end else b""
            chunk = self._file.read(_UNPACK_CHUNK_BYTES)
            if not chunk:
                break
            self._start, self._chunk = end - len(kept), kept + chunk
            end += len(chunk)
        return self._chunk[max(0, start - self._start) : max(0, stop - self._start)]


def count_members(shard: Shard, cache: ShardCache | None) -> tuple[int, int]:
    """Return the samples of a shard, and the members that none of them uses.

    A compressed shard is read twice and never held. Raises ShardError as `ShardReader`.
    """
    if shard.name.lower().endswith(".tar"):
        return index_counts(ShardReader(shard, check_count=False, cache=cache).index)
    with open_shard(shard, cache) as file:
        try:
            return index_counts(index_tar(_GzipStream(shard, file)))
        except DamagedTarError as error:
            raise ShardError(f"{shard.url}: {error}.", reason=error.reason) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ShardError(f"{shard.url}: damaged or not gzip ({error}).") from None
        except OSError as error:
            text = f"{shard.url}: cannot read the shard ({error.strerror})."
            raise ShardError(text, reason="unreadable") from None


def index_counts(index: TarIndex) -> tuple[int, int]:
    """Return the samples of an index, and the members that none of them uses."""
    return len(index), index.unused.counts.total()


class OpenShards:
    """The shards of a manifest, opened on demand; the least recently used are closed again."""

    def __init__(self, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self._shards, self._cache = manifest.shards, cache
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()
        self._failed: dict[int, tuple[ShardError, float]] = {}
        self._num_indexed = 0
        self.unused: dict[int, UnusedMembers] = {}
        """By shard: members that no sample uses, of the shards that were opened and have some."""
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each open file keeps a descriptor; most are left to sockets and to the other data set.
        self._max_open = max(16, min(4096, soft_limit // 4))
        self.is_planned = cache is None
        """Whether shards stay open after a read: local ones, and those that a prefetcher plans."""
        self._lock = threading.Lock()

    def get(self, number: int) -> ShardReader:
        """Return shard `number`, indexed and open; ShardError when it cannot be used."""
        with self._lock:
            error, until = self._failed.get(number, (None, 0.0))
            if error is not None and time.monotonic() < until:
                # A traceback grows each time its error is raised, and keeps its frames' objects.
                raise ShardError(str(error), reason=error.reason)
            began = time.monotonic()
            try:
                return self._opened(number)
            except ShardError as error:
                self.failed(number, error, time.monotonic() - began)
                raise

    def failed(self, number: int, error: ShardError, seconds: float) -> None:
        """Do not retry a shard for a while, after it took `seconds` to fail."""
        until = time.monotonic() + max(_RETRY_SECONDS, _RETRY_FACTOR * seconds)
        self._failed[number] = error.with_traceback(None), until

    def release_unplanned(self) -> None:
        """Close all files after a read, unless a prefetcher decides which stay open."""
        if not self.is_planned:
            self.release_all(files_only=True)

    def release_all(self, but: Container[int] = (), files_only: bool = False) -> None:
        """Close all shards `but` some; indexes stay, and with `files_only` what was unpacked."""
        with self._lock:
            # Not only those in self._open: a thread may have opened a closed one again.
            for number, reader in self._readers.items():
                if number in but or (files_only and reader.unpacked_bytes):
                    continue
                self._open.pop(number, None)
                reader.release()

    def _opened(self, number: int) -> ShardReader:
        reader = self._readers.get(number)
        if reader is None:
            reader = ShardReader(self._shards[number], cache=self._cache)
            self._readers[number] = reader
            self._num_indexed += len(reader)
            if reader.index.unused.counts:
                self.unused[number] = reader.index.unused
        reader.open()
        self._readers.move_to_end(number)
        self._open[number] = reader.unpacked_bytes
        self._open.move_to_end(number)
        self._close_oldest()
        return reader

    def _close_oldest(self) -> None:
        max_open = self._max_open if self.is_planned else MAX_OPEN_UNPLANNED
        while len(self._open) > 1 and (
            len(self._open) > max_open or sum(self._open.values()) > _MAX_UNPACKED_BYTES
        ):
            number, _ = self._open.popitem(last=False)
            self._readers[number].release()
        while len(self._readers) > 1 and self._num_indexed > _MAX_INDEXED_SAMPLES:
            number, reader = self._readers.popitem(last=False)
            self._open.pop(number, None)
            self._num_indexed -= len(reader)


class ShardFile:
    """The bytes of an open file, as a buffer to slice.

    They are read, not mapped: where a mapped page cannot be loaded (the file was cut short, the
    disk has a bad sector, the server of a network disk is gone) the kernel kills the process. A
    failed read is an error of one shard. It costs 0.7 us more than a slice of a mapping. The file
    may be closed afterwards; a lock on it lasts as long as this object.
    """

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._url = url
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: "slice[Any, Any, Any]", /) -> bytes:
        """Return the bytes of a slice; ShardError if the file does not give them."""
        start, stop, _ = key.indices(self._size)
        wanted = max(0, stop - start)
        try:
            data = os.pread(self._descriptor, wanted, start)
        except OSError as error:
            raise ShardError(
                f"{self._url}: cannot read byte {start} ({error.strerror}).", reason="unreadable"
            ) from None
        if len(data) != wanted:
            raise ShardError(
                f"{self._url}: ends at byte {start + len(data)}, had {self._size} bytes before; "
                "write shards under another name and rename them when they are whole.",
                reason="size",
            )
        return data

    @property
    def identity(self) -> FileVersion:
        """The file's current version."""
        found = os.fstat(self._descriptor)
        return found.st_ino, found.st_size, found.st_mtime_ns
