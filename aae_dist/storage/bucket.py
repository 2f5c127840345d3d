"""Folders in a bucket (s3, gs, az) or, to read only, on a web server: obstore behind `Storage`."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotSupportedError
from obstore.exceptions import PreconditionError as Changed

from aae_dist.errors import LaunchError
from aae_dist.storage.base import WEB_SCHEMES, Entry, Names, Piece, check_key, join, scheme_of
from aae_dist.storage.bucket_client import data_client, probe_client
from aae_dist.storage.bucket_errors import check_version, explained, names_no_bucket

if TYPE_CHECKING:
    from obstore import GetOptions, UpdateVersion
    from obstore.store import ObjectStore

CHUNK_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
_NO_RANGES = ("Range request not supported", "Received non-partial response")


class RangesRefusedError(LaunchError):
    """The server gives whole files only."""


class BucketStorage:
    """A folder in a bucket. See `Storage` for what each method promises.

    All folders of one bucket share a client, its connections and its credentials.
    """

    def __init__(
        self,
        root: str,
        prefix: str = "",
        store: "ObjectStore | None" = None,
        patience_seconds: float | None = None,
        probe: bool = False,
    ) -> None:
        """Name the folder `prefix` ('' is the top) of the bucket `root`, say s3://bucket.

        `patience_seconds` bounds each request with all its retries; `probe` is as in
        `open_storage`.
        """
        self._root, self._prefix = root, prefix
        with explained(root):
            if store is None:
                store = probe_client(root) if probe else data_client(root, patience_seconds)
        self._store = store

    @property
    def uri(self) -> str:
        """The folder's address."""
        return join(self._root, self._prefix) if self._prefix else self._root

    def child(self, name: str) -> "BucketStorage":
        """Return the folder `name` below this one."""
        return BucketStorage(self._root, self._path(name), self._store)

    def read(self, key: str) -> bytes:
        """Return the whole file."""
        with explained(join(self.uri, key)):
            return bytes(self._store.get(self._path(key)).bytes())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from byte `start` on."""
        with explained(join(self.uri, key)):
            try:
                return bytes(self._store.get_range(self._path(key), start=start, length=length))
            except GenericError as error:
                if "416 Range Not Satisfiable" in str(error):
                    return b""
                raise

    def write(self, key: str, data: bytes) -> None:
        """Store the file."""
        self._check_not_web()
        with explained(join(self.uri, key)):
            self._store.put(self._path(key), data, chunk_size=CHUNK_BYTES)

    def create(self, key: str, data: bytes) -> bool:
        """Store the file unless the key exists."""
        self._check_not_web()
        with explained(join(self.uri, key)):
            try:
                self._store.put(self._path(key), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        """Store the file if its bytes are `expected` until then."""
        self._check_not_web()
        with explained(join(self.uri, key)):
            try:
                current = self._store.get(self._path(key))
                if bytes(current.bytes()) != expected:
                    return False
                version: UpdateVersion = {}
                if tag := current.meta["e_tag"]:
                    version["e_tag"] = tag
                if number := current.meta["version"]:
                    version["version"] = number
                self._store.put(self._path(key), data, mode=version, use_multipart=False)
            except (FileNotFoundError, Changed):
                return False
            return True

    def upload(self, key: str, path: Path) -> None:
        """Store a copy of the local file `path`, in parts where it is large."""
        self._check_not_web()
        with explained(join(self.uri, key)):
            self._store.put(self._path(key), path, chunk_size=CHUNK_BYTES)

    def list(self, prefix: str = "") -> list[Entry]:
        """Return the files in folder `prefix` and below, sorted by key."""
        top = self._path(prefix) if prefix else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        self._check_can_list()
        with explained(self.uri):
            pages = list(self._store.list(top or None))
        found = [Entry(m["path"][cut:], m["size"], m["e_tag"]) for page in pages for m in page]
        return sorted(found, key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Names:
        """Return the names of the folders directly in folder `prefix`, sorted."""
        top = self._path(prefix) if prefix else self._prefix
        self._check_can_list()
        with explained(self.uri):
            found = self._store.list_with_delimiter(top or None)["common_prefixes"]
        return sorted(path.rsplit("/", 1)[-1] for path in found)

    def is_empty(self) -> bool:
        """Return whether the first page of a listing is empty."""
        self._check_can_list()
        with explained(self.uri):
            try:
                return not any(self._store.list(self._prefix or None, chunk_size=1))
            except (BaseError, FileNotFoundError) as error:
                if names_no_bucket(error):
                    return True
                raise

    def delete(self, key: str) -> None:
        """Remove the file."""
        self._check_not_web()
        with explained(join(self.uri, key)):
            try:
                self._store.delete(self._path(key))
            except FileNotFoundError:
                return

    def clear(self, prefix: str) -> None:
        """Remove all that lies below the folder `prefix`."""
        for entry in self.list(prefix):
            self.delete(entry.key)

    def size(self, key: str) -> int | None:
        """Return the number of bytes of the file, None when it is absent."""
        with explained(join(self.uri, key)):
            try:
                return int(self._store.head(self._path(key))["size"])
            except FileNotFoundError:
                return None

    def stat(self, key: str) -> Entry | None:
        """Return the file's size, tag and time, None when it is absent."""
        with explained(join(self.uri, key)):
            try:
                found = self._store.head(self._path(key))
            except FileNotFoundError:
                return None
        return Entry(key, found["size"], found["e_tag"], found["last_modified"].timestamp())

    def stream(
        self, key: str, start: int, end: int, version: Entry | None = None
    ) -> Iterator[Piece]:
        """Yield the bytes [start, end) in pieces, of `version` alone.

        Raises:
            RangesRefusedError: the server gives whole files only.
        """
        url = join(self.uri, key)
        with explained(url):
            try:
                found = self._store.get(
                    self._path(key), options={"range": (start, end), **_only(version)}
                )
            except (NotSupportedError, GenericError) as error:
                if any(text in str(error) for text in _NO_RANGES):
                    raise RangesRefusedError(f"{url}: the server knows no ranges.") from error
                raise
            check_version(url, version, found.meta)
            yield from (memoryview(piece) for piece in found.stream(PIECE_BYTES))

    def stream_whole(self, key: str, version: Entry | None = None) -> Iterator[Piece]:
        """Yield all bytes of `version` in pieces, from a server that knows no ranges."""
        url = join(self.uri, key)
        with explained(url):
            found = self._store.get(self._path(key), options=_only(version))
            check_version(url, version, found.meta)
            yield from (memoryview(piece) for piece in found.stream(PIECE_BYTES))

    def check_writable(self) -> None:
        """Write and remove a probe."""
        self._check_not_web()
        with explained(self.uri):
            quick = probe_client(self._root)
            probe = self._path(f".probe-{uuid.uuid4().hex}")
            quick.put(probe, b"")
            quick.delete(probe)

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}" if self._prefix else check_key(key)

    def _check_can_list(self) -> None:
        if scheme_of(self._root) in WEB_SCHEMES:
            raise LaunchError(f"{self.uri}: a web server cannot be listed. Name each file.")

    def _check_not_web(self) -> None:
        if scheme_of(self._root) in WEB_SCHEMES:
            raise LaunchError(f"{self.uri}: a web server is read-only. Write elsewhere.")


def _only(version: Entry | None) -> "GetOptions":
    """Return what asks the server for this version alone.

    A weak tag (W/"...") matches nothing there (RFC 9110, 13.1.1): the answer tells, if anything.
    """
    tag = version.etag if version else None
    return {} if tag is None or tag.startswith("W/") else {"if_match": tag}
