"""Section launch: processes, machines, restarts."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section


class Launch(Section):
    """Processes and machines; they change a run's numbers at most by floating-point rounding."""

    kind: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers. local: this process, or the ranks that torchrun
    started."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Data-parallel ranks under Ray, or [fewest, most]: the run then uses as many as there are
    resources for, and changes their number while it runs."""
    resize_seconds: PositiveFloat = 60.0
    """With [fewest, most] workers: seconds between checks for resources for more of them."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores and torch threads per rank, under both launchers."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """auto: 1 if any live node or autoscaler group has GPUs, else 0. Fractions: for a single worker
    only."""
    max_failures: NonNegativeInt = 8
    """Restarts of the workers after a crash or the loss of a node, over the whole run."""
    hang_timeout_seconds: PositiveFloat | None = 60.0
    """A rank that makes no progress for this long prints its stacks and exits; null: no limit."""
    max_wait_minutes: PositiveFloat = 30.0
    """Longest wait for the cluster to provide the resources."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of ranks may change during the run."""
        return self.fewest_workers < self.most_workers

    @property
    def fewest_workers(self) -> int:
        """Ranks that the run needs to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Ranks that the run uses if there are resources."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]
