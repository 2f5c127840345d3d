"""Web addresses that may not be asked: a list of shards is data, and data may be hostile."""

import ipaddress
from urllib.parse import urlsplit

from aae_dist.errors import LaunchError

# Machines in a cloud get their credentials here; an address in a manifest must not reach it.
_METADATA_HOSTS = ("metadata.google.internal", "metadata", "instance-data")
_METADATA_ADDRESSES = ("fd00:ec2::254", "100.100.100.200")


def check_web_address(uri: str) -> None:
    """Raise LaunchError for an address with credentials in it, or of a metadata server.

    A name that resolves to such an address, or a redirect to one, is not found here: those fail
    because https is all that is spoken to other machines, and metadata servers do not speak it.
    """
    parts = urlsplit(uri)
    if parts.username is not None or parts.password is not None:
        # Not repeated in full: what stands before the @ is a secret.
        raise LaunchError(
            f"{parts.scheme}://...@{parts.hostname}: no user or password in an address, as "
            "addresses end up in logs and manifests. Use a public file or a bucket."
        )
    host = (parts.hostname or "").rstrip(".").lower()
    if host in _METADATA_HOSTS or _is_link_local(host):
        raise LaunchError(
            f"{uri}: refused, this is where machines keep their credentials. Use another address."
        )


def _is_link_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        # 2852039166 and 0xa9fea9fe are spellings of 169.254.169.254 that resolvers accept.
        return host.replace(".", "").isdigit() or host.startswith("0x")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_link_local or address in map(ipaddress.ip_address, _METADATA_ADDRESSES)
