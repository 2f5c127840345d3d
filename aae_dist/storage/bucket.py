"""Folders in a bucket (s3, gs, az) or, to read only, on a web server: obstore behind `Storage`."""

import os
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.exceptions import PreconditionError as Changed

from aae_dist.errors import LaunchError
from aae_dist.storage.base import WEB_SCHEMES, Entry, Names, check_key, join, scheme_of
from aae_dist.storage.bucket_errors import explained
from aae_dist.storage.local import write_file

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# obstore's default is 10 retries over 3 minutes: too long a silence for a mistyped name.
PROBE: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
DATA: "RetryConfig" = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_SECONDS = 5
PROBE_SECONDS = 15
# A request moves at most one object of a checkpoint or one range of a shard.
REQUEST_SECONDS = 120
CHUNK_BYTES = 8 << 20


def connect(root: str, retries: "RetryConfig", request_seconds: int) -> "ObjectStore":
    """Return obstore's client for scheme://host; it reads the environment of each provider."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=request_seconds),
        "allow_http": scheme_of(endpoint) == "http" or scheme_of(root) == "http",
    }
    from_url = obstore.store.from_url
    if scheme_of(root) == "s3" and endpoint:
        # Servers that are not Amazon's seldom have a host name for each bucket.
        return from_url(
            root,
            client_options=options,
            retry_config=retries,
            endpoint=endpoint,
            virtual_hosted_style_request=False,
        )
    return from_url(root, client_options=options, retry_config=retries)


class BucketStorage:
    """A folder in a bucket. See `Storage` for what each method promises.

    All folders of one bucket that came from one another share a client and its connections.
    """

    def __init__(self, root: str, prefix: str = "", store: "ObjectStore | None" = None) -> None:
        """Name the folder `prefix` ('' is the top) of the bucket `root`, say s3://bucket."""
        self._root, self._prefix = root, prefix
        with explained(root):
            self._store = store or connect(root, DATA, REQUEST_SECONDS)

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

    def download(self, key: str, path: Path) -> None:
        """Copy the file to the local `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with explained(join(self.uri, key)):
            parts = self._store.get(self._path(key)).stream(min_chunk_size=CHUNK_BYTES)
            write_file(path, lambda file: file.writelines(parts))

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

    def check_writable(self) -> None:
        """Write and remove a probe."""
        self._check_not_web()
        with explained(self.uri):
            quick = connect(self._root, PROBE, PROBE_SECONDS)
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
