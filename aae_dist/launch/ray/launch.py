"""The launcher on a Ray cluster: Ray Train starts, places and restarts the workers."""

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.errors import unpacked
from aae_dist.launch import shared_storage as nonce
from aae_dist.launch.log import say
from aae_dist.launch.ray import cluster as ray_cluster
from aae_dist.launch.ray.monitor import Monitor, News, Payload, print_lines
from aae_dist.launch.stop import StopRequest, StopSignals
from aae_dist.storage import Storage, is_remote, join, open_storage
from aae_dist.training.outcome import Outcome
from aae_dist.training.run.resume import finished_before


def launch_ray(config: RunConfig) -> Outcome:
    """Train the run with Ray Train, on the cluster of RAY_ADDRESS or on one of this machine.

    A run that has finished before is answered without starting Ray.

    Raises:
        Interrupted: the stop came before any worker had started.
        AaeDistError: the user's mistake, in one line.
        WorkersFailedError: workers failed more often than `launch.max_failures` allows.
    """
    done = finished_before(config)
    if done is not None:
        return done
    ray_cluster.check_machine(config)
    ray_cluster.check_data([config])
    for line in ray_cluster.advice(config):
        say(line)
    folder = open_storage(join(config.run.storage, config.run.name))
    folder.check_writable()
    word = nonce.leave(folder)
    with ray_cluster.connected(config), StopSignals() as signals, ray_storage(folder) as storage:
        payload = _run_on_screen(config, word, storage, signals)
    return outcome_of(payload)


def _run_on_screen(config: RunConfig, word: str, storage: str, signals: StopRequest) -> Payload:
    """Run with a live bar on a terminal, with lines anywhere else."""
    if not sys.stdout.isatty():
        return run_on_ray(config, word, storage, signals)
    from aae_dist.launch.ray.screen import Screen

    with contextlib.closing(Screen()) as screen:
        return run_on_ray(config, word, storage, signals, screen, has_screen=True)


def run_on_ray(
    config: RunConfig,
    word: str,
    storage: str,
    signals: StopRequest,
    hear: Callable[[News], None] = print_lines,
    has_screen: bool = False,
) -> Payload:
    """Run the training on the connected cluster; return what rank 0 returned.

    Args:
        config: the run's configuration.
        word: what the driver left in the run folder.
        storage: folder for Ray Train's own files.
        signals: say when to stop.
        hear: called about four times a second with what is new.
        has_screen: whether `hear` shows progress, so that no lines of it are wanted.
    """
    # Imported when Ray runs: these import it, which takes seconds.
    from aae_dist.launch.ray.driver import Driver, Fit
    from aae_dist.launch.ray.entry import Task
    from aae_dist.launch.ray.trainer import build_trainer, warm_up

    demand = ray_cluster.demand_of(config)
    ray_cluster.check_demand(demand)
    say(f"starting {demand} with Ray Train")
    warm_up()
    monitor = start_monitor()
    launch_id, here = secrets.token_hex(8), os.getcwd()
    task = Task(config.model_dump_json(), launch_id, word, monitor, here, has_screen)
    fit = Fit(build_trainer(config, demand, task, storage).fit)
    return Driver(config, demand, monitor, fit, signals, hear).watch()


def outcome_of(payload: Payload) -> Outcome:
    """Return what the workers returned, or raise the error that they met."""
    if "error" in payload:
        raise unpacked(payload["error"])
    return Outcome(**payload["outcome"])


@contextlib.contextmanager
def ray_storage(folder: Storage) -> Iterator[str]:
    """Yield Ray Train's own folder: `.ray` in a local run folder, else a temporary one.

    Checkpoints are ours, so all that Ray writes there is a marker file: not worth the credentials
    that its other S3 client would need.
    """
    if not is_remote(folder.uri):
        yield join(folder.uri, ".ray")
        return
    with tempfile.TemporaryDirectory(prefix="aae_dist-ray-") as path:
        yield path


def start_monitor() -> Any:
    """Start the `Monitor` actor on this node, which outlives any worker's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
