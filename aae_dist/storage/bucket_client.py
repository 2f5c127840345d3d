"""Clients of obstore: retries, time-outs and end points for buckets and web servers."""

import os
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import obstore

from aae_dist.storage.base import scheme_of

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# obstore's default is 10 retries over 3 minutes: too long a silence for a mistyped name.
PROBE: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
DATA: "RetryConfig" = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_SECONDS = 5
PROBE_SECONDS = 15
# A request moves at most one object of a checkpoint or one range of a shard.
REQUEST_SECONDS = 120
# A connection that is silent for so long is broken off, and the request made again.
STALL_SECONDS = 20
_MOST_CLIENTS = 16


def connect(root: str, retries: "RetryConfig", request_seconds: float) -> "ObjectStore":
    """Return obstore's client for scheme://host; it reads the environment of each provider."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if scheme_of(root) == "s3" else ""
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, request_seconds)),
        "timeout": timedelta(seconds=request_seconds),
        "read_timeout": timedelta(seconds=min(STALL_SECONDS, request_seconds / 3)),
        # Without it obstore refuses plain http, also as the target of a redirect.
        "allow_http": scheme_of(endpoint) == "http" or scheme_of(root) == "http",
    }
    from_url = obstore.store.from_url
    if endpoint:
        # Servers that are not Amazon's seldom have a host name for each bucket.
        return from_url(
            root,
            client_options=options,
            retry_config=retries,
            endpoint=endpoint,
            virtual_hosted_style_request=False,
        )
    return from_url(root, client_options=options, retry_config=retries)


def probe_client(root: str) -> "ObjectStore":
    """Return a client for what a start waits for: few retries, 15 s in all."""
    return _shared(root, None, True, frozenset(os.environ.items()))


def data_client(root: str, patience_seconds: float | None) -> "ObjectStore":
    """Return a client whose every request ends in `patience_seconds`, retries and all."""
    return _shared(root, patience_seconds, False, frozenset(os.environ.items()))


# Each client has connections and credentials of its own: a new one for each shard would ask the
# provider for a token each time. All threads share one; the environment is what configures it.
@lru_cache(_MOST_CLIENTS)
def _shared(
    root: str,
    patience_seconds: float | None,
    probe: bool,
    environment: Iterable[tuple[str, str]],
) -> "ObjectStore":
    if probe:
        return connect(root, PROBE, PROBE_SECONDS)
    if patience_seconds is None:
        return connect(root, DATA, REQUEST_SECONDS)
    retries: RetryConfig = {"retry_timeout": timedelta(seconds=patience_seconds)}
    return connect(root, retries, min(REQUEST_SECONDS, patience_seconds))
