"""The `Storage` protocol, and how keys and addresses are written and checked."""

import ipaddress
import re
import socket
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from aae_dist.errors import LaunchError
from aae_dist.utils.text import without_credentials_in_url, without_user_info

BUCKET_SCHEMES = ("s3", "gs", "az")
WEB_SCHEMES = ("https", "http")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class Entry:
    """A stored file: its key below the folder that was listed, its bytes, a bucket's tag of it."""

    key: str
    size: int
    etag: str | None = None
    modified: float = field(default=0.0, compare=False)
    """When it was last written, in seconds since 1970 by the storage's clock; from `stat` only."""


# Inside a class with a method `list` that name is no longer the built-in type.
Names = list[str]
Piece: TypeAlias = "bytes | memoryview[int]"


class Storage(Protocol):
    """A folder: local or in a bucket. Keys are relative, '/'-separated and may not leave it.

    Every write is atomic: a reader sees the old bytes or the new ones, never a part.
    An absent file is FileNotFoundError; unusable storage is LaunchError, in one line.
    """

    @property
    def uri(self) -> str:
        """The folder's address, without a '/' at its end."""

    def child(self, name: str) -> "Storage":
        """Return the folder `name` below this one; nothing is created."""

    def read(self, key: str) -> bytes:
        """Return the whole file; FileNotFoundError when it is absent."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from byte `start` on: fewer where the file ends before."""

    def write(self, key: str, data: bytes) -> None:
        """Store the file, replacing an older one; on return it survives a crash of the machine."""

    def create(self, key: str, data: bytes) -> bool:
        """Store the file unless the key exists; return whether it was stored."""

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        """Store the file if its bytes are `expected` until then; return whether it was stored."""

    def upload(self, key: str, path: Path) -> None:
        """Store a copy of the local file `path`, however large."""

    def list(self, prefix: str = "") -> list[Entry]:
        """Return the files in folder `prefix` and below, sorted by key; none when it is absent."""

    def folders(self, prefix: str = "") -> Names:
        """Return the names of the folders directly in folder `prefix`, sorted."""

    def is_empty(self) -> bool:
        """Return whether no file is in the folder or below, or there is no folder; one request."""

    def delete(self, key: str) -> None:
        """Remove the file; an absent one is fine."""

    def clear(self, prefix: str) -> None:
        """Remove the folder `prefix` with all that lies below it; an absent one is fine."""

    def size(self, key: str) -> int | None:
        """Return the number of bytes of the file, None when it is absent."""

    def stat(self, key: str) -> Entry | None:
        """Return the file's size, tag and time, None when it is absent."""

    def stream(
        self, key: str, start: int, end: int, version: Entry | None = None
    ) -> Iterator[Piece]:
        """Yield the bytes [start, end) in pieces of a few MiB, perhaps fewer bytes in all.

        An interrupted body is resumed where it stopped. With `version`, from `stat`, only that
        version is read: StorageError with the reason "changed" if it was replaced.
        """

    def check_writable(self) -> None:
        """Write and remove a probe; raise LaunchError within seconds when that fails."""

    def reconnected(self) -> "Storage":
        """Return the same folder, read over connections that nothing has used yet."""


_REREAD_SECONDS = (0.1, 0.4, 1.0)


def rereads(storage: Storage) -> Iterator[Storage]:
    """Yield `storage`, then the same folder over new connections, each after a longer wait.

    For bytes that turned out to be wrong: a proxy, a connection or a mount may give a wrong answer
    once, or as long as one connection lasts. A local folder is yielded twice, without a wait.
    """
    yield storage
    if not is_remote(storage.uri):
        yield storage
        return
    for seconds in _REREAD_SECONDS:
        time.sleep(seconds)
        yield storage.reconnected()


def read_or_none(storage: Storage, key: str) -> bytes | None:
    """Return the whole file, None when it is absent."""
    try:
        return storage.read(key)
    except FileNotFoundError:
        return None


# Control characters, a backslash, or a part that is empty, '.' or '..'. One expression: of 100,000
# shards four million characters are checked at a start.
_NO_KEY = re.compile(r"[\x00-\x1f\\]|(?:^|/)\.{0,2}(?:/|$)")


def check_key(key: str) -> str:
    """Return `key` when it names something below a folder; raise LaunchError otherwise."""
    if _NO_KEY.search(key):
        raise LaunchError(
            f"{key!r} is no storage key. Use names joined by '/', "
            "without '.', '..', '\\', control characters or a '/' at either end."
        )
    return key


def scheme_of(uri: str) -> str:
    """Return the scheme of an address in lower case, '' for a local path."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else ""


def is_remote(uri: str) -> bool:
    """Return whether `uri` names a bucket or a web server, not a local path."""
    return scheme_of(uri) not in ("", "file")


def join(uri: str, *parts: str) -> str:
    """Return the address of `parts` below `uri`; each part is checked as a key is."""
    return "/".join([uri.rstrip("/"), *(check_key(part) for part in parts)])


# Machines in a cloud get their credentials here; an address in a manifest must not reach it.
_METADATA_HOSTS = ("metadata.google.internal", "metadata", "instance-data")
_METADATA_ADDRESSES = ("fd00:ec2::254", "100.100.100.200")


def check_no_user_info(uri: str) -> None:
    """Raise LaunchError for an address with a user or a password in it."""
    if scheme_of(uri) and (shown := without_user_info(uri)) != uri:
        # Not repeated in full: the part before the @ is a secret.
        raise LaunchError(
            f"{without_credentials_in_url(shown)}: no user, key or password in an address, as "
            "addresses end up in logs and manifests. Set the credentials in the environment, for "
            "instance AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a public file."
        )


def check_web_address(uri: str) -> None:
    """Raise LaunchError for an address of a metadata server."""
    # A name that resolves to such an address, or a redirect to one, is not found here: those fail
    # because other machines are reached over https only, which metadata servers do not offer.
    parts = urlsplit(uri)
    host = unicodedata.normalize("NFKC", unquote(parts.hostname or "")).replace("\u3002", ".")
    host = host.rstrip(".").lower()
    if host in _METADATA_HOSTS or _is_link_local(host):
        raise LaunchError(
            f"{uri}: refused, this is where machines keep their credentials. Use another address."
        )


def is_loopback(host: str) -> bool:
    """Return whether a host, without brackets, is this machine."""
    address = _ip_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
# Addresses that hold an IPv4 address in their last 32 bits: NAT64, its local prefix, "compatible".
_WITH_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))


def _is_link_local(host: str) -> bool:
    address = _ip_address(host)
    if address is None:
        return False
    found = [address]
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo or ()
        found += [a for a in (address.ipv4_mapped, address.sixtofour, *teredo) if a is not None]
        # Also what an intermediate prefix or an ISATAP interface would translate.
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        is_isatap = (int(address) >> 32) & 0xFFFFFFFF in (0x5EFE, 0x02005EFE)
        found += [inner] if is_isatap or any(address in net for net in _WITH_IPV4) else []
    forbidden = set(map(ipaddress.ip_address, _METADATA_ADDRESSES))
    return any(each.is_link_local or each in forbidden for each in found)


def _ip_address(host: str) -> IpAddress | None:
    """Return the address that a host is, None for a name."""
    try:
        return ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        pass
    # 2852039166, 0xa9fea9fe, 0251.0376.43518 are spellings of 169.254.169.254 that clients accept.
    if not re.fullmatch(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+)){0,3}", host):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
