"""Samples of shards by number: each shard is indexed on first touch and then read at random."""

import gzip
import mmap
import resource
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Container
from typing import BinaryIO

from aae_dist.data.cache import ShardCache
from aae_dist.data.fetch import open_shard
from aae_dist.data.manifest import Manifest, Shard
from aae_dist.data.tar_headers import Buffer, DamagedTarError
from aae_dist.data.tar_index import TarIndex, index_tar
from aae_dist.errors import ShardError

_MAX_UNPACKED_BYTES = 4 << 30
"""Largest .tar.gz shard, unpacked, and the bound on all that are held unpacked at a time."""
_RETRY_SECONDS = 60.0
"""How long a shard that failed is left alone: each of its samples would wait for it again."""
_MAX_INDEXED_SAMPLES = 4_000_000
"""Samples whose place in their shard is remembered, about 0.5 GB."""


class ShardReader:
    """One shard, open: its samples in the order of the archive.

    Args:
        shard: The shard and what the manifest says of it.
        check_count: False to accept any number of samples, for counting them.
        cache: Where copies of remote shards lie; None takes the default place.

    Raises:
        ShardError: The file cannot be read, is damaged, or holds another number of samples.
    """

    def __init__(
        self, shard: Shard, check_count: bool = True, cache: ShardCache | None = None
    ) -> None:
        self.shard, self._cache = shard, cache
        self._buffer: Buffer | None = None
        try:
            self.index: TarIndex = index_tar(self._bytes())
        except DamagedTarError as error:
            raise ShardError(f"{shard.url}: {error}.", reason=error.reason) from None
        if check_count and len(self.index) != shard.samples:
            raise ShardError(
                f"{shard.url}: the shard has {len(self.index)} samples, the manifest says "
                f"{shard.samples}; write the manifest again with: aae-dist data index PATTERN",
                reason="count",
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    def fields(self, sample: int) -> dict[str, bytes]:
        """Return every field of a sample: {name: bytes}."""
        buffer = self._bytes()
        places = self.index.fields(sample)
        return {name: buffer[start : start + size] for name, (start, size) in places.items()}

    def field(self, place: tuple[int, int]) -> bytes:
        """Return the bytes of one field, from its place in `index.fields`."""
        return self._bytes()[place[0] : place[0] + place[1]]

    @property
    def unpacked_bytes(self) -> int:
        """Memory held for the contents of a compressed shard; a plain one is mapped, not held."""
        return len(self._buffer) if isinstance(self._buffer, bytes) else 0

    def open(self) -> None:
        """Make sure that the contents are at hand; raise ShardError when they cannot be had."""
        self._bytes()

    def release(self) -> None:
        """Give up file and contents, keep the index; reading opens the shard again."""
        self._buffer = None

    def _bytes(self) -> Buffer:
        if self._buffer is None:
            # The mapping keeps the file's lock, and with it the copy in the cache.
            with open_shard(self.shard, self._cache) as file:
                self._buffer = _contents(self.shard, file)
        return self._buffer


def _contents(shard: Shard, file: BinaryIO) -> Buffer:
    try:
        if not shard.name.lower().endswith(".tar"):
            return _unpacked(shard, file)
        if shard.bytes == 0:
            raise ShardError(f"{shard.url}: the file is empty, not even an empty tar.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ShardError(f"{shard.url}: damaged or not gzip ({error}).") from None
    except OSError as error:
        text = f"{shard.url}: cannot read the shard ({error.strerror})."
        raise ShardError(text, reason="unreadable") from None


def _unpacked(shard: Shard, packed: BinaryIO) -> bytes:
    with gzip.open(packed, "rb") as file:
        # One byte more than allowed tells a full read from a bomb.
        data = file.read(_MAX_UNPACKED_BYTES + 1)
    if len(data) > _MAX_UNPACKED_BYTES:
        raise ShardError(
            f"{shard.url}: more than {_MAX_UNPACKED_BYTES >> 30} GiB when unpacked; "
            "write smaller shards, or plain .tar files."
        )
    return data


def _without_traceback(error: ShardError) -> ShardError:
    # A traceback grows each time its error is raised, and keeps what its frames hold alive.
    return ShardError(str(error), reason=error.reason)


class OpenShards:
    """The shards of a manifest, opened on demand; the least recently used are closed again."""

    def __init__(self, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self._shards, self._cache = manifest.shards, cache
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()
        self._failed: dict[int, tuple[ShardError, float]] = {}
        self._num_indexed = 0
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each mapped file keeps a descriptor; most are left to sockets and to the other data set.
        self._may_open = max(16, min(4096, soft_limit // 4))
        self._max_open = self._may_open
        self._lock = threading.Lock()

    def get(self, number: int) -> ShardReader:
        """Return shard `number`, indexed and open; ShardError when it cannot be used."""
        with self._lock:
            error, until = self._failed.get(number, (None, 0.0))
            if error is not None and time.monotonic() < until:
                raise _without_traceback(error)
            try:
                return self._opened(number)
            except ShardError as error:
                self._failed[number] = (
                    error.with_traceback(None),
                    time.monotonic() + _RETRY_SECONDS,
                )
                raise

    def limit(self, num_open: int) -> None:
        """Keep at most `num_open` shards open, or what the process may have if that is less."""
        self._max_open = min(num_open, self._may_open)

    def release_all(self, but: Container[int] = (), mapped_only: bool = False) -> None:
        """Close all shards except `but`; their indexes stay.

        Args:
            but: Numbers of shards that stay open.
            mapped_only: Keep what was unpacked: it is dear to have, and holds no file open.
        """
        with self._lock:
            # Not only those in self._open: a thread may have opened one again that was closed.
            for number, reader in self._readers.items():
                if number in but or (mapped_only and reader.unpacked_bytes):
                    continue
                self._open.pop(number, None)
                reader.release()

    def _opened(self, number: int) -> ShardReader:
        reader = self._readers.get(number)
        if reader is None:
            reader = ShardReader(self._shards[number], cache=self._cache)
            self._readers[number] = reader
            self._num_indexed += len(reader)
        reader.open()
        self._readers.move_to_end(number)
        self._open[number] = reader.unpacked_bytes
        self._open.move_to_end(number)
        self._close_oldest()
        return reader

    def _close_oldest(self) -> None:
        while len(self._open) > 1 and (
            len(self._open) > self._max_open or sum(self._open.values()) > _MAX_UNPACKED_BYTES
        ):
            number, _ = self._open.popitem(last=False)
            self._readers[number].release()
        while len(self._readers) > 1 and self._num_indexed > _MAX_INDEXED_SAMPLES:
            number, reader = self._readers.popitem(last=False)
            self._open.pop(number, None)
            self._num_indexed -= len(reader)
