"""`aae-dist doctor`: is this place fit for a run? Green and red lines, exit code 2 for red."""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import RawHelp, items_argument, read_items
from aae_dist.errors import LaunchError

if TYPE_CHECKING:
    from aae_dist.config import RunConfig
    from aae_dist.doctor.findings import Finding
    from aae_dist.doctor.machine import Machine
    from aae_dist.doctor.ray import NodeProbe

EXAMPLES = """\
examples:
  aae-dist doctor my.yaml
  aae-dist submit my.yaml --doctor --address http://localhost:8265
"""


@click.command(cls=RawHelp, short_help="check a place before money is spent there", epilog=EXAMPLES)
@items_argument(required=False)
def doctor(items: tuple[str, ...]) -> int:
    """Check a place before money is spent there.

    Checks versions, GPUs, memory, disk, clocks, network, storage, W&B and open dashboards: of this
    machine, or of all machines of the Ray cluster that RAY_ADDRESS names or whose job this is.
    Exit code 2 when a line is red; each says what to do.
    """
    from aae_dist.doctor import rules
    from aae_dist.doctor.findings import lines
    from aae_dist.launch.submit.work import read_work

    config = read_work(*read_items(items)).config if items else None
    red = 0
    for finding in check(config):
        print(*lines([finding], sys.stdout.isatty()), sep="\n", flush=True)
        red += not finding.ok
    if config is None:
        print("storage, W&B and resources were not checked: give a configuration, as to `train`")
    print(f"{rules.count(red, 'problem')} found" if red else "all is well")
    return 2 if red else 0


def check(config: "RunConfig | None") -> "Iterator[Finding]":
    """Yield what is found, as it is found."""
    from aae_dist.doctor.findings import bad

    on_ray = config is None or config.launch.kind == "ray"
    if on_ray and os.environ.get("RAY_ADDRESS"):
        if find_spec("ray") is None:
            yield bad("ray", "not installed, and RAY_ADDRESS is set", "pip install 'aae_dist[ray]'")
            return
        yield from _cluster(config)
    else:
        yield from _this_machine(config)


def _this_machine(config: "RunConfig | None") -> "Iterator[Finding]":
    from aae_dist.doctor import probes, rules
    from aae_dist.doctor.findings import bad, good
    from aae_dist.doctor.machine import look

    machine = look()
    wanted = config.train.device == "cuda" if config else False
    yield from rules.same_versions([machine])
    yield from rules.gpus([machine], float(wanted))
    yield from rules.shared_memory([machine])
    yield from rules.disk([machine])
    if config is None:
        return
    failure = probes.storage(config.run.storage, machine.host)
    if failure:
        yield bad("storage", failure, "name a folder or bucket that you may write")
    else:
        probes.hosts_seen(config.run.storage)
        yield good("storage", f"{config.run.storage}: written, read, listed, written conditionally")
    url = wandb_server(config)
    yield from probes.wandb(url) if url else _no_wandb()


def _cluster(config: "RunConfig | None") -> "Iterator[Finding]":
    from aae_dist.doctor import ray as ray_doctor
    from aae_dist.doctor.findings import bad, good
    from aae_dist.launch.ray import cluster

    with cluster.connected():
        pairs, findings = ray_doctor.facts(ray_doctor.places())
        yield from findings
        if not pairs:
            return
        demand = cluster.request_of(config) if config else None
        wanted = demand.per_worker.get("GPU", 0.0) if demand else 0.0
        yield from _machines(pairs, wanted)
        if config is None or demand is None:
            return
        try:
            cluster.check_request(demand)
            yield good("resources", f"{demand} fit")
        except LaunchError as error:
            yield bad("resources", str(error), "see `most` in the overlay's site.yaml")
        places = [place for place, _ in pairs]
        yield from ray_doctor.storage(places, config.run.storage)
        url = wandb_server(config)
        yield from ray_doctor.wandb_from(places[-1], url) if url else _no_wandb()


def _machines(pairs: "Sequence[tuple[NodeProbe, Machine]]", gpus: float) -> "Iterator[Finding]":
    from aae_dist.doctor import probes, rules
    from aae_dist.doctor import ray as ray_doctor
    from aae_dist.doctor.findings import good

    machines, places = [machine for _, machine in pairs], [place for place, _ in pairs]
    yield from rules.same_versions(machines)
    yield from rules.gpus([m for place, m in pairs if place.trains] or machines, gpus)
    yield from rules.shared_memory(machines)
    yield from rules.disk(machines)
    yield from rules.clocks(ray_doctor.offsets(places))
    ranks = [place for place in places if place.trains] or places
    if len(ranks) == 1:
        yield good("network", "one machine trains: nothing to measure")
    else:
        seconds = ray_doctor.network(ranks, "nccl" if gpus else "gloo")
        yield from rules.network(seconds, len(ranks), "nccl" if gpus else "gloo")
    url = ray_doctor.dashboard_url()
    yield from probes.dashboard(url) if url else [good("dashboard", "none runs")]


def wandb_server(config: "RunConfig") -> str | None:
    """Return the address that W&B's files would go to from here, None where none would."""
    from aae_dist.tracking.wandb_sink import DEFAULT_SERVER, decide_mode

    installed = find_spec("wandb") is not None
    mode, _ = decide_mode(config.wandb.mode, os.environ, installed, Path.home())
    if mode != "online":
        return None
    return os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER


def _no_wandb() -> "list[Finding]":
    from aae_dist.doctor.findings import good

    return [good("wandb", "not used: no key here, offline or disabled")]
