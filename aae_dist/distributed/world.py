"""Which rank this process is; the only reader of RANK, WORLD_SIZE and the like."""

import os
from dataclasses import dataclass

import torch

from aae_dist.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process's rank among the data-parallel ranks of a run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1
    """Ranks on this node; they have consecutive numbers."""

    def __str__(self) -> str:
        """Return how many ranks there are."""
        return f"{self.size} rank{'s' * (self.size != 1)}"

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files, pictures and metrics."""
        return self.rank == 0


def single() -> World:
    """Return the world of one process on the CPU."""
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def from_environment(device: str) -> World:
    """Return the world that torchrun or Ray Train described in this process's environment.

    Args:
        device: auto, cpu or cuda; auto takes the GPU of this process's local rank, if there is one.

    Raises:
        ConfigError: cuda, where torch sees no GPU.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if device == "cuda":
        check_cuda("train.device=cuda")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return World(rank, size, local_rank, chosen, local_size)


def check_cuda(wanted: str) -> None:
    """Raise ConfigError, which names what was wanted, unless torch sees a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{wanted}, but torch sees no GPU on this machine; use cpu, or look at what "
            "`aae-dist doctor` says of GPUs"
        )
