"""Collectives: JSON between ranks, shared outcomes, means and tables over ranks.

Decisions travel over a gloo process group with a long timeout, so they never synchronize with the
GPU; tensors of training use the default group.
"""

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError, packed, unpacked

COLLECTIVE_SECONDS = 600
"""Timeout of collectives that exchange gradients; torch's default is 1800 s."""
CONTROL_SECONDS = 7200
"""Timeout of control messages, while one rank may work alone: twice the watchdog's limit for an
evaluation, so that the watchdog, not torch's timeout, ends ranks that hang."""

_groups: "WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = WeakKeyDictionary()


def control_group() -> dist.ProcessGroup:
    """Return a gloo group of all ranks, which lives as long as the process group.

    The first call creates it, which is a collective: call it when the process group is set up.
    """
    default = dist.group.WORLD
    assert default is not None
    if default not in _groups:
        patience = timedelta(seconds=CONTROL_SECONDS)
        group = dist.new_group(backend="gloo", timeout=patience)
        assert isinstance(group, dist.ProcessGroup)
        _groups[default] = group
    return _groups[default]


def broadcast_json(value: Any, world: World, source: int = 0) -> Any:
    """Return rank `source`'s JSON value on every rank."""
    if world.size == 1:
        return value
    payload = _packed(value)
    length = torch.tensor([len(payload)])
    dist.broadcast(length, source, group=control_group())
    if world.rank != source:
        payload = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(payload, source, group=control_group())
    return _unpacked(payload)


def gather_json(value: Any, world: World) -> list[Any]:
    """Return every rank's JSON value, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    payload = _packed(value)
    lengths = [int(length) for length in _gathered(torch.tensor([len(payload)]), world)]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(payload)] = payload
    texts = zip(_gathered(padded, world), lengths, strict=True)
    return [_unpacked(text[:length]) for text, length in texts]


# JSON travels as bytes: torch's object collectives unpickle.
def _packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(payload: Tensor) -> Any:
    return json.loads(payload.numpy().tobytes())


def _gathered(mine: Tensor, world: World) -> list[Tensor]:
    all_ranks = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(all_ranks, mine, group=control_group())
    return all_ranks


T = TypeVar("T")


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """Return the mean of `values` over all ranks."""
    if world.size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world.size


def rows_of_all_ranks(rows: Tensor, numbers: Tensor, num_rows: int, world: World) -> Tensor:
    """Return the table of all ranks' rows, in the order of their numbers, on every rank.

    Args:
        rows: this rank's rows, (B, ...); ranks may hold different numbers of rows.
        numbers: where each row stands in the table, int64 (B).
        num_rows: rows of the table.
        world: this process's rank and the number of ranks.
    """
    table = rows.new_zeros(num_rows, *rows.shape[1:])
    table[numbers] = rows
    if world.size > 1:
        # A sum of one row and zeros is exact, and needs no padding to equal shares.
        dist.all_reduce(table)
    return table


def run_on_all_ranks(world: World, work: Callable[[], T]) -> T:
    """Run `work` on every rank; if it raises an AaeDistError anywhere, raise it everywhere.

    Without this, a rank that cannot read its data would leave the others waiting in a collective.
    """
    result, problem = _attempt(work)
    first = torch.tensor([world.size if problem is None else world.rank])
    if world.size > 1:
        dist.all_reduce(first, dist.ReduceOp.MIN, group=control_group())
    if int(first) < world.size:
        raise unpacked(broadcast_json(problem, world, source=int(first)))
    assert result is not None
    return result[0]


def run_on_rank_zero(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone; its JSON result, or its AaeDistError, is every rank's."""
    result, problem = _attempt(work) if world.is_main else (None, None)
    sent = broadcast_json([problem, result[0] if result else None], world)
    if sent[0] is not None:
        raise unpacked(sent[0])
    value: T = sent[1]
    return value


def _attempt(work: Callable[[], T]) -> tuple[tuple[T] | None, list[str] | None]:
    try:
        return (work(),), None
    except AaeDistError as error:
        return None, packed(error)


def start_sum(counts: Sequence[int], world: World) -> Callable[[], list[int]]:
    """Start to sum `counts` over ranks; the returned function waits for the sums."""
    totals = torch.tensor(counts, dtype=torch.int64)
    if world.size == 1:
        return totals.tolist
    work = dist.all_reduce(totals, group=control_group(), async_op=True)
    assert work is not None

    def wait() -> list[int]:
        work.wait()
        sums: list[int] = totals.tolist()
        return sums

    return wait
