"""Text that people read: without secrets, numbers and times, the progress of long jobs."""

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

HIDDEN = "***"
SHORTEST = 8
"""Shorter values are not redacted: they would hide harmless words."""
_SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY)", re.I)
_HARMLESS_NAME = re.compile(r"(_FILE|_PATH|_MODE|_DIR|_URL|_URI|_TIMEOUT|_PROVIDER)$", re.I)
_USER_INFO = re.compile(r"(?<=://)[^/@\s\"']*@")
# Web addresses only: in a pattern of a bucket's keys `?` is a wildcard.
_QUERY = re.compile(r"(https?://[^\s\"'?]*)\?[^\s\"']*")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without credentials in URLs and without secrets of the environment."""
    if "://" in text:
        text = without_credentials_in_url(text)
    for name in filter(_is_secret_name, environment):
        value = environment.get(name, "")
        if len(value) >= SHORTEST and value[0] != "/" and value in text:
            text = text.replace(value, HIDDEN)
    return text


@lru_cache(maxsize=4096)  # Every printed line asks about every variable.
def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS_NAME.search(name)


def redacted(tree: Any) -> Any:
    """Return a JSON tree with every text in it redacted."""
    if isinstance(tree, dict):
        return {name: redacted(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree


def without_credentials_in_url(text: str) -> str:
    """Return `text` without user, password and query (it may hold a signature) of its URLs."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))


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
    print(redact(line), flush=True)


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True)) as bar:
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
