"""What a run wants of a cluster, and whether it can ever have it: arithmetic without Ray."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aae_dist.config import RunConfig

Resources = Mapping[str, float]
SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class Demand:
    """`workers` bundles of resources; each bundle lies on one node."""

    workers: int
    per_worker: dict[str, float]
    fewest: int | None = None
    """Workers that are enough to start with; by default all."""

    def room_on(self, node: Resources) -> int:
        """Return how many of the workers a node with these resources can hold."""
        rooms = [math.floor(node.get(k, 0.0) / v + 1e-9) for k, v in self.per_worker.items()]
        return min(self.workers, *rooms)

    def fits(self, nodes: Iterable[Resources]) -> bool:
        """Return whether these nodes together can hold as many workers as are needed."""
        return sum(self.room_on(node) for node in nodes) >= (self.fewest or self.workers)

    def __str__(self) -> str:
        elastic = self.fewest is not None and self.fewest < self.workers
        count = f"{self.fewest} to {self.workers}" if elastic else f"{self.workers}"
        return f"{count} workers x ({show(self.per_worker)})"


def demand_of(config: RunConfig, nodes: Iterable[Resources]) -> Demand:
    """Return what the run wants; `gpus_per_worker: auto` is one if any of these nodes has one."""
    launch = config.launch
    gpus = launch.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
    if config.train.device == "cpu":
        gpus = 0.0
    per_worker = {"CPU": float(launch.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
    return Demand(launch.most_workers, per_worker, launch.fewest_workers)


def show(resources: Resources) -> str:
    """Return the CPUs and GPUs among `resources` as text, say '4 CPU, 1 GPU'."""
    known = {key: resources.get(key, 0.0) for key in SHOWN}
    return ", ".join(f"{amount:g} {key}" for key, amount in known.items() if amount or key == "CPU")


def total(nodes: Iterable[Resources]) -> dict[str, float]:
    """Return the sum of the nodes' CPUs and GPUs."""
    listed = list(nodes)
    return {key: sum(node.get(key, 0.0) for node in listed) for key in SHOWN}
