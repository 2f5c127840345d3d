"""Means and tables over ranks on their devices, and work whose end they all wait for."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.distributed.control import broadcast_json, control_group
from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError, packed, unpacked

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
        world: this process's place among the ranks.
    """
    table = rows.new_zeros(num_rows, *rows.shape[1:])
    table[numbers] = rows
    if world.size > 1:
        # A sum of one row and zeros is exact, and needs no padding to equal shares.
        dist.all_reduce(table)
    return table


def together(world: World, work: Callable[[], T]) -> T:
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


def main_decides(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone; its JSON result, or its AaeDistError, is every rank's."""
    result, problem = _attempt(work) if world.is_main else (None, None)
    told = broadcast_json([problem, result[0] if result else None], world)
    if told[0] is not None:
        raise unpacked(told[0])
    value: T = told[1]
    return value


def _attempt(work: Callable[[], T]) -> tuple[tuple[T] | None, list[str] | None]:
    try:
        return (work(),), None
    except AaeDistError as error:
        return None, packed(error)
