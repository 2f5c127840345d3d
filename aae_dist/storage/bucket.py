"""Folders in a bucket (s3, gs, az) or, to read only, on a web server: obstore behind `Storage`."""

import os
import random
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from obstore import exceptions

from aae_dist.errors import LaunchError, StorageError, StorageReason
from aae_dist.storage import clients, listing
from aae_dist.storage.base import WEB_SCHEMES, Entry, Names, Piece, check_key, join, scheme_of
from aae_dist.utils.text import READ_BY_CLIENTS

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, UpdateVersion
    from obstore.store import ObjectStore


_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_NO_CREDENTIALS = re.compile(
    r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google|No credential|missing credential"
    r"|Missing (SecretAccessKey|AccessKeyId)|Account must be specified",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"\b(401 Unauthorized|403 Forbidden)\b|AccessDenied|InvalidAccessKeyId")
_ELSEWHERE = re.compile(r"PermanentRedirect|301 Moved|AuthorizationHeaderMalformed")
_UNREACHABLE = re.compile(r"error sending request|timed out|dns error", re.IGNORECASE)
# Errors that obstore retried in full: 5xx and 429 answers, and bodies that broke off.
_RETRIED = re.compile(r"status code: (5\d\d|429)|body error|after \d+ retries", re.IGNORECASE)

_USUAL = "AWS_ENDPOINT_URL"  # replaced by the variable of the store at hand
_NO_SUCH_BUCKET = f"the bucket does not exist. Create it, or check its name and {_USUAL}"
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_LOG_IN = f"no credentials were found. Set {_KEYS['s3']}, or give the pod a role"
_NO_PROFILES = (
    ". AWS_PROFILE is set, but profiles of ~/.aws are not read here: export its keys with "
    "`aws configure export-credentials --format env`"
)
_FORBIDDEN = "no permission (403). Give these credentials the right to read, write, list and delete"
_OTHER_REGION = "the bucket is in another region. Set AWS_REGION to the bucket's"
_REDIRECTED = (
    "the server redirects to another host, which is followed from https only. Name that host, or "
    "use an https address"
)
_SILENT = f"the server cannot be reached. Check the network and {_USUAL}"
# The same for web servers: they have neither credentials nor an endpoint to set.
_OF_THE_WEB = {
    _FORBIDDEN: "the server does not give it to everybody (401, 403). Check the address, or its "
    "signature if it has one",
    _SILENT: "the server cannot be reached. Check the address and the network",
}
_OTHER_VERSION = "the file has changed since it was listed. Index the shards again"
# Conditional writes. Azure answers 409 where S3 says 412: the object exists.
_CONFLICT = re.compile(r"409 Conflict(?!.*BlobAlreadyExists)", re.DOTALL)
_NO_CONDITIONS = re.compile(r"501 Not Implemented|NotImplemented\b")
_MAX_CONFLICTS = 8
"""Consecutive answers of 409 to one write, over about 6 s."""
_NEEDED = (
    "which keep two processes from writing one run. Use a store that has them (Amazon S3, Google "
    "Cloud Storage, Azure, a current MinIO), or a shared folder"
)
_LACKS = f"the store lacks conditional writes ({{}}), {_NEEDED}"


def advice(error: Exception) -> str:
    """Return the problem and its fix, without a full stop; the server's words if unknown."""
    text = str(error)
    if _NO_BUCKET.search(text):
        return _NO_SUCH_BUCKET
    # Asking the machine for its role is the last resort of a client that found nothing else.
    if _NO_CREDENTIALS.search(text):
        return _LOG_IN
    denied = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    if isinstance(error, denied) or _REFUSED.search(text):
        return _FORBIDDEN
    if isinstance(error, exceptions.PreconditionError):
        return _OTHER_VERSION
    if _ELSEWHERE.search(text):
        return _OTHER_REGION
    if re.search(rf"\b{re.escape(clients.NO_PROXY)},", text):
        return _REDIRECTED
    if _UNREACHABLE.search(text):
        return _SILENT
    return text.split("\n", 1)[0].rstrip(".") + _variables_in(text)


def _with_variable(text: str, uri: str) -> str:
    """Return advice of ours with the variable that this store's address was read from."""
    if text.startswith(_LOG_IN):
        return text.replace(_KEYS["s3"], _KEYS.get(scheme_of(uri), _KEYS["s3"]))
    if text not in (_NO_SUCH_BUCKET, _SILENT):
        return text
    name = clients.endpoint_variable(uri)
    return text.replace(f" and {_USUAL}", f" and {name}" if name else "")


def _variables_in(text: str) -> str:
    """Return which variables an error about a value of the environment is about, '' if none."""
    if "Config error" not in text and "Invalid" not in text:
        return ""
    values = {n: v for n, v in os.environ.items() if v and READ_BY_CLIENTS.search(n)}
    names = [n for n, v in values.items() if f'"{v}"' in text or f": {v}." in text]
    if not names and "Access Key" in text:
        names = [n for n in values if n.startswith("AZURE_") and n.endswith("KEY")]
    return f". Correct {' or '.join(sorted(names))}" if names else ""


def reason(error: Exception) -> StorageReason:
    """Classify the error, for `StorageError`."""
    what = advice(error)
    if what in (_LOG_IN, _FORBIDDEN):
        return "forbidden"
    if what == _OTHER_VERSION:
        return "changed"
    # Errors that obstore retried are temporary.
    return "unreachable" if what == _SILENT or _RETRIED.search(str(error)) else "other"


def check_version(uri: str, wanted: Entry | None, found: "ObjectMeta") -> None:
    """Raise StorageError when an answer is visibly of another version than `wanted`.

    Tags decide, weak or strong; without tags, the modification time.
    """
    if wanted is None:
        return
    tags = [(tag or "").removeprefix("W/") for tag in (wanted.etag, found["e_tag"])]
    times = [wanted.modified, found["last_modified"].timestamp()]
    other = tags[0] != tags[1] if all(tags) else not any(tags) and times[0] != times[1]
    if other:
        raise StorageError(f"{uri}: {_OTHER_VERSION}.", "changed")


@contextmanager
def bucket_errors(uri: str) -> Iterator[None]:
    """Turn the errors of obstore into StorageError, and an absent file into FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if _NO_BUCKET.search(str(error)):
            raise StorageError(f"{uri}: {_with_variable(_NO_SUCH_BUCKET, uri)}.") from error
        raise FileNotFoundError(f"{uri}: no such file") from error
    except (exceptions.BaseError, ValueError) as error:
        text = advice(error)
        if scheme_of(uri) in WEB_SCHEMES:
            text = _OF_THE_WEB.get(text, text)
        if text == _LOG_IN and scheme_of(uri) == "s3" and "AWS_PROFILE" in os.environ:
            text += _NO_PROFILES
        raise StorageError(f"{uri}: {_with_variable(text, uri)}.", reason(error)) from error
    except BaseException as error:
        # Rust's panics are no Exception: they would pass every handler of ours.
        if type(error).__name__ != "PanicException":
            raise
        names = ", ".join(sorted(filter(READ_BY_CLIENTS.search, os.environ))) or "none is set"
        text = " ".join(str(error).split())[:200]
        raise StorageError(
            f"{uri}: the storage client failed at a value it cannot use ({text}). Check what it "
            f"reads: {names}."
        ) from None


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
        """Name the folder `prefix` ('' is the top) of the bucket `root`, say s3://bucket."""
        self._root, self._prefix = root, prefix
        with bucket_errors(root):
            if store is None:
                store = clients.client(root, patience_seconds, probe)
        self._store = store

    @property
    def uri(self) -> str:
        return join(self._root, self._prefix) if self._prefix else self._root

    def child(self, name: str) -> "BucketStorage":
        return BucketStorage(self._root, self._path(name), self._store)

    def read(self, key: str) -> bytes:
        with bucket_errors(join(self.uri, key)):
            return bytes(self._store.get(self._path(key)).bytes())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with bucket_errors(join(self.uri, key)):
            try:
                return bytes(self._store.get_range(self._path(key), start=start, length=length))
            except exceptions.GenericError as error:
                if "416 Range Not Satisfiable" in str(error):
                    return b""
                raise

    def write(self, key: str, data: bytes) -> None:
        self._check_not_web()
        with bucket_errors(join(self.uri, key)):
            self._store.put(self._path(key), data, chunk_size=CHUNK_BYTES)

    def create(self, key: str, data: bytes) -> bool:
        self._check_not_web()
        with bucket_errors(join(self.uri, key)):
            try:
                self._put_if(key, data, "create")
            except exceptions.AlreadyExistsError:
                return False
            return True

    def _put_if(
        self, key: str, data: bytes, condition: "Literal['create'] | UpdateVersion"
    ) -> None:
        """Store the file under a condition; raise obstore's error when it does not hold."""
        url = join(self.uri, key)
        for turn in range(_MAX_CONFLICTS):
            try:
                self._store.put(self._path(key), data, mode=condition, use_multipart=False)
                return
            except exceptions.BaseError as error:
                if _NO_CONDITIONS.search(str(error)):
                    what = "If-None-Match" if condition == "create" else "If-Match"
                    raise StorageError(f"{url}: {_LACKS.format(f'{what}: 501')}.") from error
                # S3: "ConditionalRequestConflict", another write is under way, and nothing is
                # stored. It may fail in turn, so this says nothing about what exists.
                if not _CONFLICT.search(str(error)):
                    raise
            time.sleep(random.uniform(0.5, 1) * 0.05 * 2**turn)  # noqa: S311 - jitter
        raise StorageError(
            f"{url}: the store answered {_MAX_CONFLICTS} conditional writes with 409: another "
            "write is under way. Try again later, or look for a second process that writes there.",
            "unreachable",
        )

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        self._check_not_web()
        with bucket_errors(join(self.uri, key)):
            try:
                current = self._store.get(self._path(key))
                if bytes(current.bytes()) != expected:
                    return False
                version: UpdateVersion = {}
                if tag := current.meta["e_tag"]:
                    version["e_tag"] = tag
                if number := current.meta["version"]:
                    version["version"] = number
                self._put_if(key, data, version)
            except (FileNotFoundError, exceptions.PreconditionError):
                return False
            return True

    def upload(self, key: str, path: Path) -> None:
        self._check_not_web()
        with bucket_errors(join(self.uri, key)):
            self._store.put(self._path(key), path, chunk_size=CHUNK_BYTES)

    def list(self, prefix: str = "") -> list[Entry]:
        top = self._path(prefix) if prefix else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        self._check_can_list()
        with bucket_errors(self.uri):
            objects = listing.list_objects(self._store, top, self.uri)
        found = [Entry(m["path"][cut:], m["size"], m["e_tag"]) for m in objects]
        return sorted(found, key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Names:
        top = self._path(prefix) if prefix else self._prefix
        self._check_can_list()
        with bucket_errors(self.uri):
            return listing.list_folders(self._store, top, self.uri)

    def is_empty(self) -> bool:
        self._check_can_list()
        with bucket_errors(self.uri):
            try:
                return not any(self._store.list(self._prefix or None, chunk_size=1))
            except (exceptions.BaseError, FileNotFoundError) as error:
                if _NO_BUCKET.search(str(error)):
                    return True
                raise

    def delete(self, key: str) -> None:
        self._check_not_web()
        with bucket_errors(join(self.uri, key)):
            try:
                self._store.delete(self._path(key))
            except FileNotFoundError:
                return

    def clear(self, prefix: str) -> None:
        for entry in self.list(prefix):
            self.delete(entry.key)

    def size(self, key: str) -> int | None:
        with bucket_errors(join(self.uri, key)):
            try:
                return int(self._store.head(self._path(key))["size"])
            except FileNotFoundError:
                return None

    def stat(self, key: str) -> Entry | None:
        with bucket_errors(join(self.uri, key)):
            try:
                found = self._store.head(self._path(key))
            except FileNotFoundError:
                return None
        return Entry(key, found["size"], found["e_tag"], found["last_modified"].timestamp())

    def stream(
        self, key: str, start: int, end: int, version: Entry | None = None
    ) -> Iterator[Piece]:
        """As `Storage` promises; RangesRefusedError if the server gives whole files only."""
        url = join(self.uri, key)
        with bucket_errors(url):
            try:
                found = self._store.get(
                    self._path(key), options={"range": (start, end), **_only(version)}
                )
            except (exceptions.NotSupportedError, exceptions.GenericError) as error:
                if any(text in str(error) for text in _NO_RANGES):
                    raise RangesRefusedError(f"{url}: the server knows no ranges.") from error
                raise
            check_version(url, version, found.meta)
            if end - start <= PIECE_BYTES:  # a stream costs 50 us more
                yield memoryview(found.bytes())
                return
            yield from (memoryview(piece) for piece in found.stream(PIECE_BYTES))

    def stream_whole(self, key: str, version: Entry | None = None) -> Iterator[Piece]:
        """Yield all bytes of `version` in pieces, from a server that knows no ranges."""
        url = join(self.uri, key)
        with bucket_errors(url):
            found = self._store.get(self._path(key), options=_only(version))
            check_version(url, version, found.meta)
            yield from (memoryview(piece) for piece in found.stream(PIECE_BYTES))

    def check_writable(self) -> None:
        """Write and remove a probe, which also shows whether conditions of writes are heeded."""
        self._check_not_web()
        with bucket_errors(self.uri):
            quick = BucketStorage(
                self._root, self._prefix, clients.client(self._root, None, probe=True)
            )
            probe = f".probe-{uuid.uuid4().hex}"
            quick.write(probe, b"")
            try:
                ignored = quick.ignored_condition(probe)
            finally:
                quick.delete(probe)
        if ignored:
            raise StorageError(f"{self.uri}: {_LACKS.format(f'it ignores {ignored}')}.")

    def ignored_condition(self, probe: str) -> str | None:
        """Return the header of conditional writes that the store ignores, None if it heeds them.

        `probe` is the key of an empty file, which may be written.
        """
        if self.create(probe, b"again"):
            return "If-None-Match"
        if scheme_of(self._root) != "s3":  # the others have versions in the place of tags
            return None
        try:
            self._put_if(probe, b"again", {"e_tag": '"00000000000000000000000000000000"'})
        except (exceptions.PreconditionError, FileNotFoundError):
            return None
        return "If-Match"

    def reconnected(self) -> "BucketStorage":
        with bucket_errors(self._root):
            return BucketStorage(
                self._root,
                self._prefix,
                clients.connect(self._root, clients.DATA, clients.REQUEST_SECONDS),
            )

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}" if self._prefix else check_key(key)

    def _check_can_list(self) -> None:
        if scheme_of(self._root) in WEB_SCHEMES:
            raise LaunchError(f"{self.uri}: a web server cannot be listed. Name each file.")

    def _check_not_web(self) -> None:
        if scheme_of(self._root) in WEB_SCHEMES:
            raise LaunchError(f"{self.uri}: a web server is read-only. Write elsewhere.")


def _only(version: Entry | None) -> "GetOptions":
    """Return the options that request this version only."""
    # A weak tag (W/"...") never matches here (RFC 9110, 13.1.1); then the answer shows the version,
    # if anything does.
    tag = version.etag if version else None
    return {} if tag is None or tag.startswith("W/") else {"if_match": tag}
