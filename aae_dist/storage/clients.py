"""obstore's clients: what they read of the environment, how long they try, whom they ask."""

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore

from aae_dist.errors import LaunchError
from aae_dist.storage.base import WEB_SCHEMES, is_loopback, scheme_of
from aae_dist.utils.text import strip_environment, without_user_info

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# obstore's default is 10 retries over 3 minutes: too long a wait for a mistyped name.
PROBE: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
DATA: "RetryConfig" = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_SECONDS = 5
PROBE_SECONDS = 15
# A request moves at most one object of a checkpoint or one range of a shard.
REQUEST_SECONDS = 120
# A connection without data for so long is closed, and the request repeated.
STALL_SECONDS = 20
_MOST_CLIENTS = 16

_OF_SCHEME = {"s3": ("AWS_",), "gs": ("GOOGLE_", "GCP_", "GCS_"), "az": ("AZURE_", "IDENTITY_")}
_HOST = r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
_ADDRESS_NAME = re.compile(r"_(URL|URI|ENDPOINT)(_S3|_STS)?$")
_ADDRESS = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/[!-~]*)?", re.IGNORECASE)
_NAME_IN_HOST = re.compile(r"_(REGION|ACCOUNT_NAME)$")
_FREE_TEXT = re.compile(r"(_FILE|_PATH|_PROFILE|SERVICE_ACCOUNT|_CREDENTIALS|ACCOUNT_KEY)$")
"""Files, names of the user's own, and GOOGLE_SERVICE_ACCOUNT_KEY, which has several lines."""


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


def endpoint_variable(uri: str) -> str:
    """Return the variable of the store's address: the one that is set, else the usual."""
    usual = {"s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_ENDPOINT"}.get(scheme_of(uri), "")
    return next(filter(os.environ.get, _ENDPOINTS.get(scheme_of(uri), ())), usual)


def connect(root: str, retries: "RetryConfig", request_seconds: float) -> "ObjectStore":
    """Return obstore's client for scheme://host; it reads the environment of each provider."""
    strip_environment()
    check_environment(scheme_of(root))
    # As in Amazon's own clients, the address for S3 alone comes first.
    names = _ENDPOINTS.get(scheme_of(root), ())
    endpoint = next(filter(None, map(os.environ.get, names)), "")
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, request_seconds)),
        "timeout": timedelta(seconds=request_seconds),
        "read_timeout": timedelta(seconds=min(STALL_SECONDS, request_seconds / 3)),
        # Without it obstore refuses plain http, also as the target of a redirect.
        "allow_http": scheme_of(endpoint) == "http" or scheme_of(root) == "http",
        **held_to_host(endpoint or root, scheme_of(root)),
    }
    is_s3 = scheme_of(root) == "s3"
    # Servers that are not Amazon's seldom have a host name for each bucket.
    own: dict[str, Any] = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if scheme_of(root) in WEB_SCHEMES:  # from_url takes the servers of clouds for their buckets
        web: ObjectStore = obstore.store.HTTPStore.from_url(
            root, client_options=options, retry_config=retries
        )
        return web
    found: ObjectStore = obstore.store.from_url(
        root, client_options=options, retry_config=retries, **(own if endpoint and is_s3 else {})
    )
    return found


def client(root: str, patience_seconds: float | None, probe: bool) -> "ObjectStore":
    """Return a client whose requests end within `patience_seconds`, retries included.

    A `probe`, for checks at the start of a run, has few retries and 15 s in all.
    """
    return _shared(root, patience_seconds, probe, frozenset(os.environ.items()))


# Each client has connections and credentials of its own: a new one for each shard would ask the
# provider for a token each time. All threads share one; the environment is what configures it.
@lru_cache(_MOST_CLIENTS)
def _shared(
    root: str, patience_seconds: float | None, probe: bool, environment: Iterable[tuple[str, str]]
) -> "ObjectStore":
    if probe:
        return connect(root, PROBE, PROBE_SECONDS)
    if patience_seconds is None:
        return connect(root, DATA, REQUEST_SECONDS)
    retries: RetryConfig = {"retry_timeout": timedelta(seconds=patience_seconds)}
    return connect(root, retries, min(REQUEST_SECONDS, patience_seconds))


NO_PROXY = "127.255.255.254:1"
"""A proxy that does not exist."""
_PROXIES = ("http_proxy", "all_proxy", "https_proxy")
_KEYS = ("AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN")
# Where clients get the credentials of a machine's role.
_OF_A_ROLE = ("169.254.169.254", "169.254.170.2", "169.254.170.23", ".amazonaws.com", ".azure.com")


def held_to_host(address: str, scheme: str) -> "ClientConfig":
    """Return the options that let no redirect of a plain-http server lead to another host.

    obstore follows redirects. From https they cannot lead to plain http (`allow_http`), where
    metadata servers are; from http they could. All hosts but the address's own are asked through a
    proxy that does not exist. `scheme` is that of the folder: buckets may need a role's hosts.
    """
    host = urlsplit(address).hostname or ""
    has_proxy = any(os.environ.get(n) for n in (*_PROXIES, *map(str.upper, _PROXIES)))
    if scheme_of(address) != "http" or (has_proxy and not is_loopback(host)):
        return {}
    hosts = [host]
    if scheme in _OF_SCHEME and not any(map(os.environ.get, _KEYS)):
        full = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        hosts += [urlsplit(full).hostname or ""] if full else _OF_A_ROLE
    return {"proxy_url": f"http://{NO_PROXY}", "proxy_excludes": ",".join(hosts)}


def check_environment(scheme: str) -> None:
    """Raise LaunchError that names a variable of the scheme's client with an impossible value.

    Native clients end the process with a page of their own code at some of them.
    """
    for name, value in sorted(os.environ.items()):
        if name.startswith(_OF_SCHEME.get(scheme, ("-",))) and (problem := _problem(name, value)):
            raise LaunchError(f"{name}{problem}")


def _problem(name: str, value: str) -> str | None:
    if _ADDRESS_NAME.search(name) and "RELATIVE" not in name:
        if without_user_info(value) != value:
            return " holds a user or password. Set it without, and the keys in their own variables."
        if _port_is_wrong(value) or not _ADDRESS.fullmatch(value):
            advice = (
                f"http://{value}" if re.match(rf"{_HOST}(:\d+)?/?$", value) else "http://HOST:9000"
            )
            return f"={value!r} is no address. Write {advice}, or https://..."
        return None
    if _NAME_IN_HOST.search(name) and not re.fullmatch(r"[A-Za-z0-9-]+", value):
        return f"={value!r} is no such name. Use letters, digits and - only."
    # Keys and tokens become parts of HTTP headers. They are not repeated.
    if not _FREE_TEXT.search(name) and not re.fullmatch(r"[ -~]*", value):
        return " holds a line break or a character that is not ASCII. Set it again without it."
    return None


def _port_is_wrong(address: str) -> bool:
    port = re.search(r":(\d+)(/|$)", address)
    return port is not None and not 0 < int(port.group(1)[:6]) < 1 << 16
