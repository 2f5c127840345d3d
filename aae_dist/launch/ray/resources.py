"""Resources that a run requests, whether the cluster can hold them, and the wait for them."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aae_dist.config import RunConfig
from aae_dist.errors import LaunchError

Resources = Mapping[str, float]
SHOWN = ("CPU", "GPU")
FIRST_LINE_SECONDS = 10.0
LINE_SECONDS = 60.0


@dataclass(frozen=True)
class ResourceRequest:
    """`workers` bundles of resources; each bundle lies on one node."""

    workers: int
    per_worker: dict[str, float]
    fewest: int | None = None
    """Workers that are enough to start with; by default all."""

    def capacity_on(self, node: Resources) -> int:
        """Return how many of the workers a node with these resources can hold."""
        rooms = [math.floor(node.get(k, 0.0) / v + 1e-9) for k, v in self.per_worker.items()]
        return min(self.workers, *rooms)

    def fits(self, nodes: Iterable[Resources]) -> bool:
        """Return whether these nodes together can hold as many workers as are needed."""
        return sum(self.capacity_on(node) for node in nodes) >= (self.fewest or self.workers)

    def __str__(self) -> str:
        elastic = self.fewest is not None and self.fewest < self.workers
        count = f"{self.fewest} to {self.workers}" if elastic else f"{self.workers}"
        return f"{count} workers x ({show(self.per_worker)})"


def request_of(config: RunConfig, nodes: Iterable[Resources]) -> ResourceRequest:
    """Return the run's request; `gpus_per_worker: auto` is one if any of these nodes has one."""
    launch = config.launch
    gpus = launch.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
    if config.train.device == "cpu":
        gpus = 0.0
    per_worker = {"CPU": float(launch.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
    return ResourceRequest(launch.most_workers, per_worker, launch.fewest_workers)


def show(resources: Resources) -> str:
    """Return the CPUs and GPUs among `resources` as text, say '4 CPU, 1 GPU'."""
    known = {key: resources.get(key, 0.0) for key in SHOWN}
    return ", ".join(f"{amount:g} {key}" for key, amount in known.items() if amount or key == "CPU")


def total(nodes: Iterable[Resources]) -> dict[str, float]:
    """Return the sum of the nodes' CPUs and GPUs."""
    listed = list(nodes)
    return {key: sum(node.get(key, 0.0) for node in listed) for key in SHOWN}


def is_queued() -> bool:
    """Return whether Ray Train has asked for this job's workers and has not got room for them."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    # A placement group's id ends with the id of the job that made it.
    own = [g for g in placement_group_table().values() if g["placement_group_id"].endswith(job)]
    return any(group["state"] in ("PENDING", "RESCHEDULING") for group in own)


class ResourceWait:
    """Logs what a run waits for, and aborts after `max_wait_minutes` without a break."""

    def __init__(
        self, request: ResourceRequest, minutes: float, log: Callable[[str], None]
    ) -> None:
        self._request = request
        self._limit = minutes * 60
        self._log = log
        self._since: float | None = None
        self._next_line = 0.0

    def check(self) -> None:
        """Check the cluster once; to be called about once per second while no worker runs.

        Raises:
            LaunchError: the wait took longer than `launch.max_wait_minutes`.
        """
        now = time.monotonic()
        if not is_queued():
            self._since = None
            return
        if self._since is None:
            self._since, self._next_line = now, now + min(FIRST_LINE_SECONDS, self._limit / 2)
        if now - self._since > self._limit:
            raise LaunchError(
                f"launch: waited {self._limit / 60:g} min for {self._request}; {self._present()}. "
                "Free some, ask for less, or raise launch.max_wait_minutes."
            )
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            waited = (now - self._since) / 60
            self._log(
                f"waiting for room on the cluster (min {waited:.0f} of {self._limit / 60:g}): "
                f"wanted {self._request}; {self._present()}"
            )

    def _present(self) -> str:
        import ray

        free, there = ray.available_resources(), ray.cluster_resources()
        return f"free {show(free)}, of {show(there)} in all"


def own_device(device: str) -> str:
    """Return `device`, but cpu for auto where Ray has given this process no GPU.

    Ray hides GPUs from processes that own some of them, not from those that own none: with
    launch.gpus_per_worker=0 all processes of a node would take its first GPU.
    """
    import ray

    if device == "auto" and ray.is_initialized() and not ray.get_gpu_ids():
        return "cpu"
    return device
