"""Text that people read: without secrets, numbers and times, the progress of long jobs."""

import errno
import json
import logging
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8
"""Shorter secrets are hidden where they stand as a word of their own, and only in printed text."""
_SHORTEST_WORD = 3
_SHORTEST_PIECE = 16
READ_BY_CLIENTS = re.compile(r"^(AWS|AZURE|GOOGLE|GCP|GCS|WANDB)_|^IDENTITY_HEADER$")
"""Variables that storage clients and W&B read: secret unless they are known to be harmless."""
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|(^|_)PASS$|CREDENTIAL|CONNECTION_?STRING|CONN_?STR|SIGNATURE"
    r"|API_?KEY|(ACCESS|PRIVATE|ACCOUNT|MASTER|ENCRYPTION|SIGNING)_?KEY|(^|_)KEY(_BASE64)?$"
    r"|(^|_)(SAS|DSN|AUTH|COOKIE|JWT|BEARER)(_|$)|_PWD$|_PAT$|SSHPASS|WEBHOOK",
    re.IGNORECASE,
)
_HARMLESS_NAME = re.compile(
    r"(_FILE|_PATH|_MODE|_DIR|_URL|_URI|_ENDPOINT|_TIMEOUT|_PROVIDER|_SOCK|_PROXY|_HOST|_REGION"
    r"|_PROFILE|_BUCKET|_BUCKET_NAME|_CONTAINER_NAME|_ACCOUNT_NAME|_ALLOW_HTTP|_ARN|_PROJECT"
    r"|_SESSION_NAME|_ATTEMPTS|_RETRIES|_EMULATOR|_STYLE_REQUEST|_CONDITIONAL_PUT|_SERVICE_ACCOUNT"
    r"|_ENDPOINT_URL_S3|_CHECKSUM_(ALGORITHM|CALCULATION|VALIDATION)|_PARALLELISM)$"
    r"|^AWS_(REQUEST_PAYER|PAGER|S3_EXPRESS|SKIP_SIGNATURE|EXECUTION_ENV|DEFAULT_OUTPUT|SDK_.*)$"
    r"|^AWS_(UNSIGNED_PAYLOAD|EC2_METADATA_DISABLED|IMDSV1_FALLBACK|METADATA_.*)$"
    r"|^AZURE_(STORAGE_)?((AUTHORITY|TENANT|CLIENT|FEDERATED|MSI|OBJECT)_(ID|TENANT|RESOURCE_ID))$"
    r"|^AZURE_(SKIP_SIGNATURE|USE_AZURE_CLI|CLOUD_NAME|DISABLE_TAGGING)$"
    r"|^GOOGLE_(APPLICATION_CREDENTIALS|CLOUD_.*|SKIP_SIGNATURE)$"
    r"|^WANDB_(ENTITY|NAME|NOTES|TAGS|RUN_.*|RESUME|SILENT|QUIET|CONSOLE|JOB_TYPE|SWEEP_ID|USERNAME"
    r"|USER_EMAIL|DISABLE.*|X_.*|_.*|PROGRAM|ARGS|HOST|START_METHOD|SAVE_CODE|REINIT|DEBUG.*|CORE.*"
    r"|IGNORE_GLOBS|ANONYMOUS|ERROR_REPORTING|SERVICE_.*|INIT_.*|HTTP_.*|FILE_.*|SYMLINK|AGENT_.*)$",
    re.IGNORECASE,
)
_FILE_OR_CONTENTS = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT")
_HARMLESS_VALUE = re.compile(
    r"(true|false|yes|no|on|off|none|null|auto|default|disabled|enabled|online|offline|\d{1,5})\Z",
    re.IGNORECASE,
)
# User and password of an address, up to the last @ before its path; also a password with a slash,
# but not a port and a path with an @.
_USER_INFO = re.compile(
    r"(?<=://)(?:[^/\s\"'?#]*@|[^/@\s\"':]+:(?!\d{1,5}(?:[/?#\s\"']|$))[^\s\"'@]*@)+"
)
_WEB_QUERY = re.compile(r"(https?://[^\s\"'?#]*)(?:\?|#(?=[^\s\"']*=))[^\s\"']*", re.IGNORECASE)
# Of other addresses only queries with a signature or a key: `?` is a wildcard in a bucket's keys.
_SIGNED_QUERY = re.compile(
    r"(\w+://[^\s\"']*?)\?(?=(?:[^\s\"'&]*&)*(?:sig|signature|token|access_token|key|secret|"
    r"password|awsaccesskeyid|googleaccessid|x-amz-[\w-]+|x-goog-[\w-]+)=)[^\s\"']*",
    re.IGNORECASE,
)
_NAMED_PART = re.compile(
    r"\b(AccountKey|SharedAccessKey|SharedAccessSignature|X-(?:Amz|Goog)-Signature|"
    r"X-Amz-Security-Token)=[^\s;&\"']+",
    re.IGNORECASE,
)


def redact(
    text: str, environment: Mapping[str, str] = os.environ, shortest: int = _SHORTEST_WORD
) -> str:
    """Return `text` without credentials in URLs and without secrets of the environment.

    Secrets with fewer than `shortest` characters stay.
    """
    if "://" in text:
        text = without_credentials_in_url(text)
    for name in filter(_is_secret_name, environment):
        value = environment.get(name, "")
        if len(value.strip()) >= shortest and _is_secret_value(name, value):
            for form in _forms(value):
                if form in text:
                    text = _without(text, form)
    return _NAMED_PART.sub(rf"\1={HIDDEN}", text) if "=" in text else text


@lru_cache(maxsize=4096)  # Every printed line asks about every variable.
def _is_secret_name(name: str) -> bool:
    if name in _FILE_OR_CONTENTS:
        return True
    is_secret = READ_BY_CLIENTS.search(name) or _SECRET_NAME.search(name)
    return bool(is_secret) and not _HARMLESS_NAME.search(name)


def _is_secret_value(name: str, value: str) -> bool:
    if name in _FILE_OR_CONTENTS:
        return "{" in value
    if value.startswith(("/", "~")):  # base64 may begin with a slash, and so do paths
        return not os.path.exists(os.path.expanduser(value))
    return not _HARMLESS_VALUE.match(value)


@lru_cache(maxsize=512)
def _forms(value: str) -> tuple[str, ...]:
    """Return the forms in which a secret may appear: whole, encoded, or a part of it, as a line."""
    value = value.strip()
    parts = {value}
    if re.search(r"[\s;{]", value):  # a key file, a connection string
        for part in re.split(r"[\s\"',;{}]|\\n", value):
            part = part.partition("=")[2] if re.match(r"[A-Za-z]+=.", part) else part
            is_word = re.fullmatch(r"[a-z_]+|https?:.*", part)
            parts |= {part} if len(part) >= _SHORTEST_PIECE and not is_word else set()
    encoded = {quote(part, safe=s, errors="surrogateescape") for part in parts for s in ("", "/")}
    lower = {re.sub("%..", lambda found: found.group().lower(), part) for part in encoded}
    escaped = {json.dumps(part)[1:-1] for part in parts} | {repr(part)[1:-1] for part in parts}
    return tuple(sorted(parts | encoded | lower | escaped, key=len, reverse=True))


def _without(text: str, secret: str) -> str:
    if len(secret) >= SHORTEST:
        return text.replace(secret, HIDDEN)
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)


def redacted(tree: Any) -> Any:
    """Return a JSON tree with every text in it redacted."""
    if isinstance(tree, dict):
        return {name: redacted(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    # A tree is read again, and a short secret may also be the name of a folder.
    return redact(tree, shortest=SHORTEST) if isinstance(tree, str) else tree


def without_credentials_in_url(text: str) -> str:
    """Return `text` without user, password and query (it may hold a signature) of its URLs."""
    return _SIGNED_QUERY.sub(r"\1", _WEB_QUERY.sub(r"\1", without_user_info(text)))


def without_user_info(text: str) -> str:
    """Return `text` without user and password of its URLs."""
    return _USER_INFO.sub("", text)


_VARIABLE = re.compile(r"\$\{[A-Za-z_][^}]*\}|\$[A-Za-z_]\w*(?![\w$])|\$\(")
_WINDOWS_VARIABLE = re.compile(r"(?<![^/])%[A-Za-z_]{3,}%")
"""A folder by itself, of a local path: %C3%A4 in an address is an encoded letter."""
_ELSEWHERE = re.compile(r"[A-Za-z]:\\|\\\\|[\w.-]+@[\w.-]+:|[\w.-]+\.amazonaws\.com/")
"""Windows, a Windows share, scp, a bucket without https://."""
_TILDE = re.compile(r"(?<=/)~(?=/|$)")


def unexpanded(path: str) -> str:
    """Return advice about what a shell was to expand in a path or an address; '' for nothing.

    A local path that exists is taken as it is.
    """
    is_local, place = "://" not in path, os.path.expanduser(path)
    if not path.strip():
        return "it is empty. Write a path or an address"
    if is_local and os.path.lexists(place):
        return ""
    if is_local and (found := _ELSEWHERE.match(path)):
        return (
            f"{found[0]}... would be a name in the current folder: it is no path of this machine. "
            "Mount it and write where, or copy it to a bucket"
        )
    if found := _VARIABLE.search(path) or (_WINDOWS_VARIABLE.search(path) if is_local else None):
        why = "only a shell expands it, and not within single quotes"
    elif found := re.match(r"~[^/]*", place) or _TILDE.search(place):
        if path.lower().startswith(("http://", "https://")):
            return ""
        why = "no home folder is meant by it there"
    return f"{found[0]} would be taken as it is ({why}). Write the path itself" if found else ""


def strip_environment() -> None:
    """Remove blanks and line breaks around the values that storage clients and W&B read.

    Secrets made with `echo` end in a line break, which no such value may hold. Empty values are
    removed, as if they were not set.
    """
    for name in filter(READ_BY_CLIENTS.search, list(os.environ)):
        value = os.environ[name]
        if value.strip() != value:
            os.environ[name] = value.strip()
        if not value.strip():
            del os.environ[name]


def one_line(error: BaseException, most: int = 300) -> str:
    """Return the text of an error on one line; with its class unless it was raised on purpose."""
    text = " ".join(str(error).split())
    known = type(error).__module__.startswith("aae_dist.")
    return (text if known and text else f"{type(error).__name__}: {text}")[:most]


def printable(text: str) -> str:
    """Return `text` on one line, without what would command a terminal or reorder a line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_redacted() -> None:
    """Write this package's warnings to standard error, redacted; calling again does nothing."""
    logger = logging.getLogger("aae_dist")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(message)s"))
        logger.addHandler(handler)


def echo(line: str) -> None:
    """Print one line at once, also into a pipe, without secrets."""
    with _terminal_may_be_gone():
        print(redact(line), flush=True)


@contextmanager
def _terminal_may_be_gone() -> Iterator[None]:
    """Ignore that the terminal was closed: its signal stops the run with a checkpoint."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def four_digits(value: float) -> str:
    """Return four significant digits."""
    return f"{value:.4g}"


def number(value: float) -> str:
    """Return four significant digits; whole numbers in full, with commas."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return four_digits(value)


def clock(seconds: float) -> str:
    """Return a duration as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def age(seconds: float) -> str:
    """Return a duration in its largest unit, for example `3 min`."""
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, for example `3 min 20 s`."""
    whole, parts = round(seconds), []
    for size, unit in UNITS:
        count, whole = divmod(whole, size)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or f"{seconds:.1f} s"


LINE_SECONDS = 5.0

Advance = Callable[[int], None]
Show = Callable[[str, int, str], AbstractContextManager[Advance]]
"""`progress` without its last argument: label, total and unit."""


def to_stderr(line: str) -> None:
    """Print one line to standard error at once."""
    with _terminal_may_be_gone():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    label: str, total: int, unit: str, write: Callable[[str], None] = to_stderr
) -> Iterator[Advance]:
    """Yield a function to call with the number of `unit`, in the plural, done since its last call.

    `write` takes the lines where there is no terminal.
    """
    with _bar(label, total) if sys.stderr.isatty() else _lines(label, total, unit, write) as step:
        yield step


@contextmanager
def no_progress(label: str, total: int, unit: str) -> Iterator[Advance]:  # noqa: ARG001 - a `Show`
    """Yield a function that takes what `progress` does, and show nothing."""
    yield lambda count: None


@contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    # Imported here: jobs without a terminal have no use for it.
    from rich import progress as parts
    from rich.console import Console

    label_column, bar_column = parts.TextColumn("{task.description}"), parts.BarColumn()
    columns = (label_column, bar_column, parts.MofNCompleteColumn(), parts.TimeRemainingColumn())
    with parts.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(label: str, total: int, unit: str, write: Callable[[str], None]) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            write(_line(label, done, total, unit, now - start))

    yield advance
    if last > start:
        write(_line(label, done, total, unit, time.monotonic() - start))


def _line(label: str, done: int, total: int, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = (total - done) / max(rate, 1e-9)
    return f"{label}: {done}/{total} {unit}, {rate:.0f} {unit}/s, {left:.0f} s left"


Result = TypeVar("Result")

_UNDER_WAY = 256


def ordered_map(
    pool: Executor, job: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """Yield `job(*arguments)` for each of many arguments, in their order.

    The first error is raised in place of its result; jobs that have not started are cancelled.
    """
    waiting: deque[Future[Result]] = deque()
    rest = iter(arguments)
    try:
        waiting.extend(pool.submit(job, *each) for each in islice(rest, _UNDER_WAY))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(job, *each) for each in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()
