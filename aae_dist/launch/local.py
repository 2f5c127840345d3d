"""The launcher without a cluster: this process, or every process that torchrun started."""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from aae_dist.config import RunConfig
from aae_dist.config.redaction import echo
from aae_dist.distributed.collectives import COLLECTIVE_SECONDS, control_group
from aae_dist.distributed.world import World, from_environment
from aae_dist.launch.failures import WorkersFailedError, is_collateral, last_line
from aae_dist.launch.stop import StopReason, StopSignals, StopToken
from aae_dist.training.reporter import Outcome
from aae_dist.training.trainer import train


class LocalReporter:
    """Prints lines to standard output; a signal requests a stop."""

    def __init__(self, stop: StopToken) -> None:
        self._stop = stop

    def report(self, metrics: Mapping[str, float]) -> None:
        pass

    def stop_requested(self) -> bool:
        return self._stop.requested

    def stopped_as(self) -> str:
        return self._stop.reason or StopReason.INTERRUPTED

    def save_requested(self) -> bool:
        return False  # to end this process, one sends a signal

    def line(self, text: str) -> None:
        echo(text)


def launch_local(config: RunConfig) -> Outcome:
    """Train in this process: alone, or as the rank that torchrun's environment names.

    Raises:
        AaeDistError: the user's mistake, in one line.
    """
    torch.set_num_threads(config.launch.cpus_per_worker)
    world = from_environment(config.train.device)
    with StopSignals() as stop, process_group(world):
        return train(config, world, LocalReporter(stop), launch_id=secrets.token_hex(8))


@contextlib.contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the process group of torchrun's world; a process that is alone needs none.

    Raises:
        WorkersFailedError: another rank ended.
    """
    if world.size == 1:
        yield
        return
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    try:
        control_group()
        yield
    except RuntimeError as error:
        if is_collateral(str(error)):
            raise WorkersFailedError(
                f"another rank ended or cannot be reached ({last_line(error)}). Its log says why; "
                "the same command resumes from the newest checkpoint."
            ) from None
        raise
    finally:
        dist.destroy_process_group()
