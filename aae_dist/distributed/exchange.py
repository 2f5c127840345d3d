"""Small numbers and JSON between ranks over the CPU, so that no rank waits for its device."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.distributed.world import World


class Exchange:
    """A gloo group of all ranks; every rank makes the same calls in the same order."""

    def __init__(self, world: World) -> None:
        """Join the group: a collective on CUDA, where the default group would use the device."""
        self._world = world
        self._group: Any = None  # torch's name for the default group
        if world.size > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._world.size

    def start_sum(self, counts: Sequence[int]) -> Callable[[], list[int]]:
        """Begin to add up `counts` over ranks; the returned function waits for the sums."""
        totals = torch.tensor(counts, dtype=torch.int64)
        if self._world.size == 1:
            return totals.tolist
        work = dist.all_reduce(totals, group=self._group, async_op=True)
        assert work is not None

        def wait() -> list[int]:
            work.wait()
            sums: list[int] = totals.tolist()
            return sums

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's JSON value, in rank order, on every rank."""
        if self._world.size == 1:
            return [value]
        payload = torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._gather_tensors(torch.tensor([len(payload)]))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(payload)] = payload
        texts = zip(self._gather_tensors(padded), lengths, strict=True)
        # tobytes and json: torch's object collectives unpickle.
        return [json.loads(text[: int(length)].numpy().tobytes()) for text, length in texts]

    def _gather_tensors(self, mine: torch.Tensor) -> list[torch.Tensor]:
        all_ranks = [torch.empty_like(mine) for _ in range(self._world.size)]
        dist.all_gather(all_ranks, mine, group=self._group)
        return all_ranks
