"""How a run is launched: processes, machines, restarts."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section


class Launch(Section):
    """Processes and machines; changes the numbers that a run computes by float rounding at most."""

    kind: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers. local: this process, or the world torchrun started."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Data-parallel ranks under Ray, or [fewest, most]: it goes on with what is there."""
    resize_seconds: PositiveFloat = 60.0
    """With [fewest, most] workers: seconds between two looks for room for more of them."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and torch threads, of a rank, under both launchers."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """auto: 1 if any live node or autoscaler group has GPUs, else 0. Parts: for one worker."""
    max_failures: NonNegativeInt = 8
    """Times that Ray restarts the workers after a crash or the loss of a node, in the whole run."""
    hang_timeout_seconds: PositiveFloat | None = 60.0
    """A rank without progress for this long says where it hangs and ends; null: never."""
    max_wait_minutes: PositiveFloat = 30.0
    """Longest wait for the cluster to have the wanted resources."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of ranks may change while the run goes on."""
        return self.fewest_workers < self.most_workers

    @property
    def fewest_workers(self) -> int:
        """Ranks that the run needs to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Ranks that the run takes when there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]
