"""`aae-dist doctor`: checks of the place a run would start in; exit code 2 for a red line."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import RawHelp, items_argument, read_items

if TYPE_CHECKING:
    from aae_dist.doctor.rules import Finding
    from aae_dist.launch.submit.work import Work

EXAMPLES = """\
examples:
  aae-dist doctor my.yaml
  aae-dist submit my.yaml --doctor --address http://localhost:8265
"""


@click.command(cls=RawHelp, short_help="check a place before money is spent there", epilog=EXAMPLES)
@items_argument(required=False)
def doctor(items: tuple[str, ...]) -> int:
    """Check a place before money is spent there.

    Checks versions, GPUs, memory, disk, clocks, network, storage, W&B and dashboards: of this
    machine, or of all machines of the Ray cluster that RAY_ADDRESS names or whose job this is;
    there also that a job is accepted and that Ray Train and Tune run. Exit code 2 when a line is
    red; each says what to do.
    """
    from aae_dist.doctor.rules import count, lines
    from aae_dist.launch.submit.work import read_work

    work = read_work(*read_items(items)) if items else None
    red = 0
    for finding in check(work):
        print(*lines([finding], sys.stdout.isatty()), sep="\n", flush=True)
        red += not finding.ok
    if work is None:
        print("storage, W&B and resources were not checked: give a configuration, as to `train`")
    print(f"{count(red, 'problem')} found" if red else "all is well")
    return 2 if red else 0


def check(work: "Work | None") -> "Iterator[Finding]":
    """Yield each finding when it is known."""
    from aae_dist.doctor.rules import bad

    config = work.config if work else None
    on_ray = config is None or config.launch.kind == "ray"
    if not (on_ray and os.environ.get("RAY_ADDRESS")):
        from aae_dist.doctor.probes import check_machine

        yield from check_machine(config)
    elif find_spec("ray") is None:
        yield bad("ray", "not installed, and RAY_ADDRESS is set", "pip install 'aae_dist[ray]'")
    else:
        from aae_dist.doctor.ray import check_cluster

        yield from check_cluster(config, is_sweep=work is not None and work.verb == "tune")
