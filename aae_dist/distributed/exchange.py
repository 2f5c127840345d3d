"""What a loader tells those of the other ranks: small numbers, without waiting, and JSON."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.distributed.control import control_group, gather_json
from aae_dist.distributed.world import World


class Exchange:
    """Between all ranks; every rank makes the same calls in the same order."""

    def __init__(self, world: World) -> None:
        """Exchange as this one of the ranks."""
        self._world = world

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._world.size

    def start_sum(self, counts: Sequence[int]) -> Callable[[], list[int]]:
        """Begin to add up `counts` over ranks; the returned function waits for the sums."""
        totals = torch.tensor(counts, dtype=torch.int64)
        if self._world.size == 1:
            return totals.tolist
        work = dist.all_reduce(totals, group=control_group(), async_op=True)
        assert work is not None

        def wait() -> list[int]:
            work.wait()
            sums: list[int] = totals.tolist()
            return sums

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's JSON value, in rank order, on every rank."""
        return gather_json(value, self._world)
