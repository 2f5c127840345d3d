"""How many trials of a sweep the cluster holds at a time."""

from collections.abc import Iterable, Sequence

from ray import tune

from aae_dist.config import RunConfig
from aae_dist.launch.ray import cluster as ray_cluster
from aae_dist.launch.ray.resources import Demand, Resources

DRIVER = "driver"
"""A custom resource that operators give to nodes that are not taken away (spot)."""
DRIVER_BYTES = float(1 << 28)
"""Memory that a trial of several workers asks for its own process, which only waits."""


def demands_of(configs: Iterable[RunConfig]) -> list[Demand]:
    """Return the different demands of the trials on the connected cluster, each checked.

    Raises:
        LaunchError: one that this cluster can never hold.
    """
    demands: list[Demand] = []
    for config in configs:
        if (demand := ray_cluster.demand_of(config)) not in demands:
            demands.append(demand)
    for demand in demands:
        ray_cluster.check_demand(demand)
    return demands


def room_for(demands: Sequence[Demand], nodes: Sequence[Resources]) -> int:
    """Return how many trials of any of these demands fit together on empty nodes.

    More would wait inside Ray, each holding what it has got so far.
    """
    return min(_room(demand, nodes) for demand in demands)


def _room(demand: Demand, nodes: Sequence[Resources]) -> int:
    one = Demand(10**6, demand.per_worker)
    room = sum(one.room_on(node) for node in nodes) // demand.workers
    drivers = sum(node.get(DRIVER, 0.0) for node in nodes)
    return min(room, int(drivers)) if drivers and demand.workers > 1 else room


def all_nodes(most: int = 1000) -> list[Resources]:
    """Return the nodes that there are, or could be with the autoscaler."""
    groups = ray_cluster.autoscaler_groups()
    grown = [resources for resources, count in groups for _ in range(min(count, most))]
    return [*ray_cluster.nodes(), *grown] if groups else ray_cluster.nodes()


def placement_of(demand: Demand, has_drivers: bool) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a trial.

    A trial of one worker trains in Tune's own process. Several workers are Ray Train's, which
    reserves their places itself, all or none; the trial's process must not take a CPU from them.
    """
    if demand.workers == 1:
        return tune.PlacementGroupFactory([demand.per_worker])
    return tune.PlacementGroupFactory([{DRIVER: 1} if has_drivers else {"memory": DRIVER_BYTES}])
