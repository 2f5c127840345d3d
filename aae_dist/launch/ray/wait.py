"""The bounded wait for a busy or growing cluster, with one line a minute."""

import time
from collections.abc import Callable

import ray
from ray.util import placement_group_table

from aae_dist.errors import LaunchError
from aae_dist.launch.ray.resources import Demand, show

FIRST_LINE_SECONDS = 10.0
LINE_SECONDS = 60.0


def is_queued() -> bool:
    """Return whether Ray Train has asked for this job's workers and not got room for them."""
    job = ray.get_runtime_context().get_job_id()
    # A placement group's id ends with the id of the job that made it.
    own = [g for g in placement_group_table().values() if g["placement_group_id"].endswith(job)]
    return any(group["state"] in ("PENDING", "RESCHEDULING") for group in own)


class Patience:
    """Says what a run waits for, and gives up after `max_wait_minutes` of waiting in one go."""

    def __init__(self, demand: Demand, minutes: float, say: Callable[[str], None]) -> None:
        """Speak through `say`."""
        self._demand = demand
        self._limit = minutes * 60
        self._say = say
        self._since: float | None = None
        self._next_line = 0.0

    def check(self) -> None:
        """Look at the cluster once; to be called about once a second while no worker runs.

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
                f"launch: waited {self._limit / 60:g} min for {self._demand}; {self._present()}. "
                "Free some, ask for less, or raise launch.max_wait_minutes."
            )
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            waited = (now - self._since) / 60
            self._say(
                f"waiting for room on the cluster (min {waited:.0f} of {self._limit / 60:g}): "
                f"wanted {self._demand}; {self._present()}"
            )

    def _present(self) -> str:
        free, there = ray.available_resources(), ray.cluster_resources()
        return f"free {show(free)}, of {show(there)} in all"
