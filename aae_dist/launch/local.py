"""Without a cluster, this process or torchrun's: training, and a trained run on all shards."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch

from aae_dist.checkpoints.store import OnCheckpoint
from aae_dist.config import RunConfig
from aae_dist.data import Manifest, Shard
from aae_dist.distributed import world as ranks
from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError, Interrupted, LaunchError
from aae_dist.inference import dataset_job as output
from aae_dist.inference.dataset_job import DatasetJob, write_shard
from aae_dist.launch import ending
from aae_dist.storage import open_storage
from aae_dist.tracking import MetricSink, OpenConsole
from aae_dist.training import folder, trainer
from aae_dist.utils.text import echo, progress

Call = tuple[DatasetJob, int, Shard]


class LocalReporter:
    """Prints lines, by default to standard output; a signal requests a stop."""

    def __init__(self, stop: ending.StopToken, write: Callable[[str], None] = echo) -> None:
        self._stop, self._write = stop, write

    def report(self, metrics: Mapping[str, float]) -> None:
        pass

    def stop_requested(self) -> bool:
        return self._stop.requested

    def stopped_as(self) -> str:
        return self._stop.reason or ending.StopReason.INTERRUPTED

    def save_requested(self) -> bool:
        return False  # to end this process, one sends a signal

    def line(self, text: str) -> None:
        self._write(text)


def launch_local(
    config: RunConfig,
    signals: contextlib.AbstractContextManager[ending.StopToken] | None = None,
    reporter: LocalReporter | None = None,
    sinks: Sequence[MetricSink] = (),
    console: OpenConsole | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> folder.Outcome:
    """Train in this process: alone, or as the rank that torchrun's environment names.

    `signals` request a stop while they are entered, by default those of a command; `reporter` has
    their token. The other arguments are those of `train`.
    """
    torch.set_num_threads(config.launch.threads)
    world = ranks.from_environment(config.train.device)
    with signals or ending.StopSignals() as stop, process_group(world):
        reporter = reporter or LocalReporter(stop)
        if world.is_main:
            reporter.line(f"Threads: {config.launch.threads} per rank (launch.cpus_per_worker)")
        launch_id = secrets.token_hex(8)
        return trainer.train(config, world, reporter, launch_id, sinks, console, on_checkpoint)


@contextlib.contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the process group of torchrun's world; a process that is alone needs none."""
    if world.size == 1:
        yield
        return
    is_cuda = world.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(world.device)
    backend = "nccl" if is_cuda else "gloo"
    seconds = timedelta(seconds=ranks.COLLECTIVE_SECONDS)
    try:
        torch.distributed.init_process_group(backend, timeout=seconds)
    except (ValueError, RuntimeError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ending.WorkersFailedError(
            f"the {world} cannot meet at MASTER_ADDR:MASTER_PORT, {place} "
            f"({ending.last_line(error)}). Check that rank 0 runs there, and the port."
        ) from error
    try:
        ranks.control_group()
        yield
    except RuntimeError as error:
        if ending.is_collateral(str(error)):
            text = f"another rank ended or cannot be reached ({ending.last_line(error)}). Its log "
            text += "says why; the same command resumes from the newest checkpoint."
            raise ending.WorkersFailedError(text) from None
        raise
    finally:
        torch.distributed.destroy_process_group()


def write_shards(
    config: RunConfig, job: DatasetJob, manifest: Manifest, fingerprint: dict[str, Any]
) -> int:
    """Write every output shard that is not there yet; return how many were there before.

    `launch.kind` ray with `launch.workers` > 1 goes through Ray; else this process does it all, or
    shares it with the ranks that torchrun started. The bytes are the same in both cases.
    ConfigError when the output folder holds something else than `fingerprint`; Interrupted after a
    stop from the keyboard.
    """
    through_ray = config.launch.kind != "local" and config.launch.workers != 1
    # The device is the workers': the machine that asks them may have none.
    world = ranks.from_environment("cpu" if through_ray else job.device)
    out = open_storage(job.out)
    with process_group(world):
        todo = ranks.run_on_rank_zero(
            world,
            lambda: (
                [] if output.claim_output(out, fingerprint) else output.missing(out, manifest, job)
            ),
        )
        calls = [(job, number, manifest.shards[number]) for number in todo]
        try:
            through = _through_ray(config, calls) if through_ray else _written(world, calls)
            _show(through, calls, world)
        except BaseException as error:
            # Workers and peers that were not waited for may still write their first shard.
            writers_ended = not through_ray and (world.size == 1 or isinstance(error, AaeDistError))
            if world.is_main and writers_ended:
                with contextlib.suppress(LaunchError):  # the first error is the one to raise
                    output.release_claim(out)
            if not isinstance(error, KeyboardInterrupt):
                raise
            raise Interrupted(
                f"{job.out}: stopped from the keyboard; the shards that are written stay. "
                "The same command resumes from there."
            ) from None
        ranks.run_on_rank_zero(world, lambda: output.complete(out, fingerprint, manifest))
    return len(manifest.shards) - len(todo)


def _show(written: Iterator[int], calls: Sequence[Call], world: World) -> None:
    total = sum(shard.samples for _, _, shard in calls)
    if not world.is_main or not calls:
        for _ in written:
            pass
        return
    with progress("writing", total, "samples") as advance:
        for samples in written:
            advance(samples)


def _written(world: World, calls: Sequence[Call]) -> Iterator[int]:
    """Write the shards, each rank its own; yield the samples of each round."""
    for start in range(0, len(calls), world.size):
        # In rounds: a rank that fails is noticed before the next round.
        part = calls[start : start + world.size]
        own = part[world.rank : world.rank + 1]
        ranks.run_on_all_ranks(world, lambda own=own: [write_shard(*call) for call in own])  # type: ignore[misc]
        yield sum(shard.samples for _, _, shard in part)


def _through_ray(config: RunConfig, calls: Sequence[Call]) -> Iterator[int]:
    """Let Ray's workers write the shards; yield the samples of each that is done."""
    if not calls:
        return
    if find_spec("ray") is None:
        raise LaunchError(
            "launch.workers > 1 needs Ray, which is not installed. Run pip install "
            "'aae_dist[ray]', or do without it: launch.workers=1"
        )
    from aae_dist.launch.ray.tasks import run_tasks

    yield from run_tasks(config, write_in_task, calls)


def write_in_task(job: DatasetJob, number: int, shard: Shard) -> int:
    """Write one shard in a worker of Ray, on the device that Ray gave it."""
    from aae_dist.launch.ray.cluster import own_device

    return write_shard(replace(job, device=own_device(job.device)), number, shard)
