"""Many small jobs at once, with results in order and a bound on the jobs in flight."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, TypeVar

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
