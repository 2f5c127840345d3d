"""A rank that takes steps of 0.1 s (0.12 s on rank 1) by its own clock; rank 1 wants to stop."""

from typing import Any

from aae_dist.distributed.world import World
from aae_dist.training.health import StopConsensus


def decisions(world: World, first: int, num_steps: int) -> dict[str, Any]:
    """Take `num_steps` steps after step `first`; the wish to stop comes 30 steps after it."""
    now = 0.0
    agreement = StopConsensus(world, first, clock=lambda: now)
    asked: list[int] = []
    for step in range(first + 1, first + num_steps + 1):
        now += 0.12 if world.rank else 0.1

        def wants_stop(step: int = step) -> bool:
            asked.append(step)
            return world.rank == 1 and step >= first + 30

        if agreement.after(step, wants_stop, wants_save=lambda: False).stop:
            return {"asked": asked, "stopped_at": step}
    return {"asked": asked, "stopped_at": -1}
