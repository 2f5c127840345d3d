"""Long jobs: their progress, and many small tasks at once with results in order."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, TypeVar

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
    """Yield a function to call with the number of `unit` done since its last call.

    Args:
        label: What is being done, for example "packing train".
        total: Units in all.
        unit: What is counted, in the plural.
        write: Takes the lines where there is no terminal.
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
