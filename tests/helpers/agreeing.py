"""A rank that takes steps of 0.1 s (0.12 s on rank 1) by its own clock, and wants to stop at 30."""

from typing import Any

from aae_dist.distributed.world import World
from aae_dist.training.agreement import Agreement


def decisions(world: World, num_steps: int) -> dict[str, Any]:
    now = 0.0
    agreement = Agreement(world, clock=lambda: now)
    asked: list[int] = []
    for step in range(1, num_steps + 1):
        now += 0.12 if world.rank else 0.1

        def wants_stop(step: int = step) -> bool:
            asked.append(step)
            return world.rank == 1 and step >= 30

        if agreement.after(step, wants_stop, wants_save=lambda: False).stop:
            return {"asked": asked, "stopped_at": step}
    return {"asked": asked, "stopped_at": -1}
