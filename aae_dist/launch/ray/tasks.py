"""Independent tasks on a Ray cluster: the parts of a verb's work, spread over workers."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.errors import AaeDistError, packed, unpacked
from aae_dist.launch.failures import WorkersFailedError, last_line
from aae_dist.launch.log import say
from aae_dist.launch.ray import cluster as ray_cluster
from aae_dist.launch.ray.resources import Demand

Payload = dict[str, Any]
LOOK_SECONDS = 1.0


def run_tasks(
    config: RunConfig, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield what `function(*call)` returns for each call, as they end; `launch.workers` at a time.

    A task whose process or node dies is started again, up to `launch.max_failures` times.

    Args:
        config: `launch` says how many workers and what each has.
        function: of a module that the workers can import.
        calls: arguments of each task.

    Raises:
        AaeDistError: what a task raised, as it raised it; the others are cancelled.
        LaunchError: the cluster can never hold the workers, or has had no room for them for
            `launch.max_wait_minutes`.
        WorkersFailedError: a task's process died more often than `launch.max_failures` allows.
    """
    ray_cluster.check_machine(config)
    with ray_cluster.connected(config):
        demand = ray_cluster.demand_of(config)
        ray_cluster.check_demand(demand)
        say(f"starting {demand} with Ray")
        yield from _run(config, demand, function, calls)


def _run(
    config: RunConfig, demand: Demand, function: Callable[..., Any], calls: Sequence[Any]
) -> Iterator[Any]:
    # Imported when Ray runs: these import it, which takes seconds.
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from aae_dist.launch.ray.wait import Patience

    patience = Patience(demand, config.launch.max_wait_minutes, say)
    group = placement_group([demand.per_worker] * demand.workers, strategy="PACK")
    task = ray.remote(_guarded).options(
        num_cpus=demand.per_worker["CPU"],
        num_gpus=demand.per_worker.get("GPU", 0),
        max_retries=config.launch.max_failures,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    waiting = list(reversed(calls))
    running: list[Any] = []
    try:
        while not group.wait(LOOK_SECONDS):
            patience.check()
        while waiting or running:
            while waiting and len(running) < demand.workers:
                running.append(task.remote(os.getcwd(), function, *waiting.pop()))
            done, running = ray.wait(running, timeout=LOOK_SECONDS)
            yield from (_value(ray, reference) for reference in done)
            # A node that dies takes its part of the group with it: then room is waited for again.
            patience.check()
    finally:
        for reference in running:
            ray.cancel(reference)
        remove_placement_group(group)


def _guarded(search_path: str, function: Callable[..., Any], *arguments: Any) -> Payload:
    """Run one call in a worker; a mistake of the user's comes back as a value, not to be retried.

    `search_path` is the driver's working directory, where a prior of the user's own may lie.
    """
    if search_path not in sys.path:
        sys.path.append(search_path)
    try:
        return {"value": function(*arguments)}
    except AaeDistError as error:
        return {"error": packed(error)}


def _value(ray: Any, reference: Any) -> Any:
    try:
        payload: Payload = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # what the task itself raised: a fault of ours
    except ray.exceptions.RayError as error:
        raise WorkersFailedError(
            "a worker's process failed more often than launch.max_failures allows: "
            f"{last_line(error)}"
        ) from error
    if "error" in payload:
        raise unpacked(payload["error"])
    return payload["value"]
