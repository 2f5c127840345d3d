"""Ranks that wait for one another longer than the process group allows where it trains."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.distributed.world import (
    CONTROL_SECONDS,
    World,
    control_group,
    gather_json,
    run_on_all_ranks,
    run_on_rank_zero,
    start_sum,
)
from aae_dist.training.health import StopConsensus

LIMIT, WORK = 0.3, 1.0
"""Seconds: what the process group allows, and how long one rank makes the others wait."""


def impatient() -> None:
    """Cut the time-out of the process group short."""
    group = dist.group.WORLD
    assert group is not None
    group._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=LIMIT))


def waits_for_slow_ranks(world: World) -> list[Any]:
    """Return what ranks decide of which one always takes its time."""
    impatient()

    def slowly(value: Any) -> Any:
        time.sleep(WORK)
        return value

    agreement = StopConsensus(world, 0)
    found = [
        run_on_rank_zero(world, lambda: slowly("of rank 0")),
        run_on_all_ranks(world, lambda: slowly("own") if world.rank else "own"),
    ]
    if world.is_main:
        time.sleep(WORK)
    found.append(start_sum([world.rank, 1], world)())
    if world.is_main:
        time.sleep(WORK)
    decision = agreement.after(1, lambda: world.rank == 1, lambda: False)
    return [*found, gather_json({"rank": world.rank}, world), decision.stop]


def groups(world: World) -> dict[str, Any]:
    """Return what is known of the control group, before and after the process group ends."""
    first = control_group()
    again = control_group() is first
    backend = first._get_backend(torch.device("cpu"))
    seconds = backend.options._timeout.total_seconds()
    num_groups = dist.get_pg_count()
    for _ in range(3):
        gather_json(world.rank, world)
    return {
        "again": again,
        "seconds": seconds == CONTROL_SECONDS,
        "more": dist.get_pg_count() - num_groups,
        "apart": first is not dist.group.WORLD,
    }
