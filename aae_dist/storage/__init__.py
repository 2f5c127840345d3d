"""Local folders, buckets and web servers behind one protocol, `Storage`."""

import re
from urllib.parse import unquote, urlsplit

from aae_dist.errors import LaunchError
from aae_dist.storage import base
from aae_dist.storage.base import Entry, Storage, check_key, is_remote, join, read_or_none, rereads
from aae_dist.storage.local import LocalStorage
from aae_dist.utils.text import unexpanded, without_credentials_in_url, without_user_info

__all__ = [
    "Entry",
    "LocalStorage",
    "Storage",
    "check_key",
    "is_remote",
    "join",
    "open_storage",
    "read_or_none",
    "rereads",
]


def open_storage(uri: str, patience_seconds: float | None = None, probe: bool = False) -> Storage:
    """Return the folder at `uri`; nothing is created, and no network is used yet.

    Args:
        uri: a local path ('~' is the home), file://, s3://bucket/..., gs://..., az://container/...
            or, to read only, https://host/...
        patience_seconds: bound on each request over the network, with all its retries.
        probe: fail after 2 retries and 15 s, so that a wrong address is reported soon.

    Raises:
        LaunchError: the scheme is not one of these, or the address is not complete.
    """
    scheme = base.scheme_of(uri)
    # A blank before s3: would make it the name of a folder here.
    is_blank_first = not scheme and base.scheme_of(uri.strip())
    if "\0" in uri or not uri or (is_blank_first and "://" in uri):
        what = "is no address. Give a path or a URI such as s3://bucket/folder."
        raise LaunchError(f"{without_credentials_in_url(uri)!r} {what}")
    if scheme not in _OTHER_NAMES:
        base.check_no_user_info(uri)
    if advice := unexpanded(uri):
        raise LaunchError(f"{without_credentials_in_url(uri)}: {advice}.")
    if scheme == "":
        return LocalStorage(uri)
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise LaunchError(f"{uri}: name a path of this machine, as in file:///folder.")
        return LocalStorage(unquote(parts.path))
    return _open_remote(uri, scheme, patience_seconds, probe)


_AZURE = "az://CONTAINER/folder, and the account to AZURE_STORAGE_ACCOUNT_NAME"
_OTHER_NAMES = {
    **dict.fromkeys(("s3a", "s3n", "r2", "minio"), "s3://BUCKET/folder"),
    **dict.fromkeys(("gcs",), "gs://BUCKET/folder"),
    **dict.fromkeys(("abfs", "abfss", "wasb", "wasbs", "azure", "adl"), _AZURE),
}
"""Names that other programs have for the same stores, and what to write here."""


def _open_remote(uri: str, scheme: str, patience_seconds: float | None, probe: bool) -> Storage:
    # Imported here: a command that only looks at local files has no use for it.
    from aae_dist.storage.bucket import BucketStorage

    _, _, rest = uri.partition("://")
    host, _, folder = rest.partition("/")
    name = urlsplit(f"//{host}").hostname
    if scheme not in (*base.BUCKET_SCHEMES, *base.WEB_SCHEMES) or (
        # Plain http sends data and keys unencrypted: fine within the machine alone.
        scheme == "http" and not base.is_loopback(name or "")
    ):
        advice = "Download it first: aae-dist pull. " if scheme == "hf" else ""
        if other := _OTHER_NAMES.get(scheme):
            advice, uri = f"Write {other}. ", f"{scheme}://{without_user_info(host)}..."
        raise LaunchError(
            f"{uri}: addresses of the kind {scheme}: are not supported. {advice}"
            "Use a local path, file://, s3://, gs://, az://, or https:// to read."
        )
    if not host:
        text = f"{scheme}:///..." if "@" in uri else uri  # a key may stand before the @
        raise LaunchError(f"{text}: the bucket or host is missing. Write {scheme}://NAME/folder.")
    if scheme in base.WEB_SCHEMES:
        base.check_web_address(uri)
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", host):
        what = " The port belongs to AWS_ENDPOINT_URL." if re.search(r":\d+$", host) else ""
        raise LaunchError(
            f"{uri}: {host!r} is no name of a bucket: letters, digits and . - _ only.{what}"
        )
    folder = folder.strip("/")
    prefix = check_key(folder) if folder else ""
    root = f"{scheme}://{host}"
    return BucketStorage(root, prefix, patience_seconds=patience_seconds, probe=probe)
