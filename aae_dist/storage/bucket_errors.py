"""One clear line for each way in which a bucket or a web server can refuse."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from aae_dist.errors import StorageError, StorageReason
from aae_dist.storage.base import WEB_SCHEMES, Entry, scheme_of

if TYPE_CHECKING:
    from obstore import ObjectMeta

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_NO_CREDENTIALS = re.compile(
    r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google|No credential|missing credential",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"\b(401 Unauthorized|403 Forbidden)\b|AccessDenied|InvalidAccessKeyId")
_ELSEWHERE = re.compile(r"PermanentRedirect|301 Moved|AuthorizationHeaderMalformed")
_UNREACHABLE = re.compile(r"error sending request|timed out|dns error", re.IGNORECASE)
# What obstore retried until it gave up: 5xx and 429 answers, and bodies that broke off.
_GAVE_UP = re.compile(r"status code: (5\d\d|429)|body error|after \d+ retries", re.IGNORECASE)

_NO_SUCH_BUCKET = "the bucket does not exist. Create it, or check its name and AWS_ENDPOINT_URL"
_LOG_IN = (
    "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "(GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME and _KEY), or give the pod a role"
)
_FORBIDDEN = "no permission (403). Give these credentials the right to read, write, list and delete"
_OTHER_REGION = "the bucket is in another region. Set AWS_REGION to the bucket's"
_SILENT = "the server cannot be reached. Check the network and AWS_ENDPOINT_URL"
# What is told of web servers instead: they have neither credentials nor an endpoint to set.
_OF_THE_WEB = {
    _FORBIDDEN: "the server does not give it to everybody (401, 403). Check the address, or its "
    "signature if it has one",
    _SILENT: "the server cannot be reached. Check the address and the network",
}
_OTHER_VERSION = "the file has changed since it was listed. Index the shards again"


def advice(error: Exception) -> str:
    """Return what went wrong and what to do, without a full stop; the server's words if unknown."""
    text = str(error)
    if _NO_BUCKET.search(text):
        return _NO_SUCH_BUCKET
    # Asking the machine for its role is the last resort of a client that found nothing else.
    if _NO_CREDENTIALS.search(text):
        return _LOG_IN
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
        return _FORBIDDEN
    if isinstance(error, PreconditionError):
        return _OTHER_VERSION
    if _ELSEWHERE.search(text):
        return _OTHER_REGION
    if _UNREACHABLE.search(text):
        return _SILENT
    return text.split("\n", 1)[0].rstrip(".")


def names_no_bucket(error: Exception) -> bool:
    """Return whether the server said that the bucket does not exist."""
    return _NO_BUCKET.search(str(error)) is not None


def reason(error: Exception) -> StorageReason:
    """Return which kind of refusal it was, as `StorageError` has it."""
    what = advice(error)
    if what in (_LOG_IN, _FORBIDDEN):
        return "forbidden"
    if what == _OTHER_VERSION:
        return "changed"
    # Anything that obstore retried is in vain for now, not for ever.
    return "unreachable" if what == _SILENT or _GAVE_UP.search(str(error)) else "other"


def check_version(uri: str, wanted: Entry | None, found: "ObjectMeta") -> None:
    """Raise StorageError when an answer is visibly of another version than `wanted`.

    Tags decide, a weak one being as good as a strong one; of a server without tags, the time.
    """
    if wanted is None:
        return
    tags = [(tag or "").removeprefix("W/") for tag in (wanted.etag, found["e_tag"])]
    times = [wanted.modified, found["last_modified"].timestamp()]
    other = tags[0] != tags[1] if all(tags) else not any(tags) and times[0] != times[1]
    if other:
        raise StorageError(f"{uri}: {_OTHER_VERSION}.", "changed")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the errors of obstore into StorageError, and an absent file into FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if _NO_BUCKET.search(str(error)):
            raise StorageError(f"{uri}: {_NO_SUCH_BUCKET}.") from error
        raise FileNotFoundError(f"{uri}: no such file") from error
    except (BaseError, ValueError) as error:
        text = advice(error)
        if scheme_of(uri) in WEB_SCHEMES:
            text = _OF_THE_WEB.get(text, text)
        raise StorageError(f"{uri}: {text}.", reason(error)) from error
