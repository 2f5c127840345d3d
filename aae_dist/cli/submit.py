"""`aae-dist submit` and `doctor`: a run or sweep on a cluster, and checks of the place first."""

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aae_dist.cli.options import items_argument, read_items, titled_option, verb

if TYPE_CHECKING:
    from aae_dist.doctor.rules import Finding
    from aae_dist.launch.submit.jobs import Work

SUBMIT_EXAMPLES = """\
examples:
  aae-dist submit my.yaml --cluster cluster/overlays/gke
  aae-dist submit my.yaml train.steps=5000 --cluster cluster/overlays/gke --dry-run
  aae-dist submit my.yaml --cluster cluster/overlays/gke --follow
  aae-dist submit my.yaml --cluster cluster/overlays/gke --stop
  aae-dist submit my.yaml --address http://localhost:8265 --stop-on-interrupt
  aae-dist submit --follow quickstart-1a2b3c --address http://localhost:8265

--cluster fills in the RayJob of a kustomize overlay and creates it with kubectl; KubeRay starts a
Ray cluster for it and removes it afterwards. --address uses a Ray cluster that runs.
--follow waits for pods, shows the log over lost heads and new clusters, and may be repeated. The
exit code is that of the run: 0 done, 2 something to correct, 3 diverged, 4 stopped with a
checkpoint, 1 all else.
"""
again_option = titled_option(
    "for what was submitted before, named by its configuration, or with --address by its job"
)
kubernetes_option, ray_option = titled_option("with --cluster"), titled_option("with --address")


@dataclass(frozen=True)
class Given:
    """Arguments and options of `submit`."""

    items: tuple[str, ...]
    cluster: Path | None
    address: str | None
    dry_run: bool
    doctor: bool
    stop_on_interrupt: bool
    follow: bool
    stop: bool
    context: str | None
    env: tuple[tuple[str, str], ...]
    working_dir: Path | None
    no_wait: bool


class NamedValue(click.ParamType[tuple[str, str], Any]):
    """NAME=VALUE."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        name, equals, text = value.partition("=")
        if not (name and equals):
            self.fail(f"should be NAME=VALUE, got {value!r}", param, ctx)
        return name, text


@verb("send a run or a sweep to a Kubernetes or Ray cluster", SUBMIT_EXAMPLES)
@items_argument(required=False)
@click.option(
    "--cluster", type=click.Path(path_type=Path), metavar="DIR", help="a kustomize overlay"
)
@click.option("--address", metavar="URL", help="a Ray dashboard, http://HOST:8265")
@click.option("--dry-run", is_flag=True, help="print what would be sent, and ask no cluster")
@click.option("--doctor", is_flag=True, help="check the cluster for this run, and train nothing")
@click.option(
    "--stop-on-interrupt",
    is_flag=True,
    help="when following, Ctrl-C stops the job with a checkpoint; by default it continues",
)
@again_option("--follow", is_flag=True, help="show its log until it ends")
@again_option("--stop", is_flag=True, help="stop it with a checkpoint, and follow it to its end")
@kubernetes_option("--context", metavar="NAME", help="kubectl's context")
@ray_option(
    "--env",
    multiple=True,
    type=NamedValue(),
    help="a variable of the job, shown in the dashboard: nothing secret",
)
@ray_option(
    "--working-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="files of yours for the job's working directory, such as a prior (at most 512 MiB)",
)
@ray_option("--no-wait", is_flag=True, help="do not follow the log")
def submit(items: tuple[str, ...], **options: Any) -> int:
    """Send a run, or a sweep, to a cluster.

    The configuration is checked here first, so that a mistake costs no machine. Submitting again
    what has ended resumes it; what has finished returns at once.
    """
    given = Given(items, **options)
    if problem := _contradiction(given):
        raise click.UsageError(problem)
    return _to_ray(given, given.address) if given.address else _to_kubernetes(given, given.cluster)


def _contradiction(given: Given) -> str | None:
    """Return the first contradiction between options, None if there is none."""
    is_again = given.follow or given.stop
    is_one_place = (given.cluster is None) != (given.address is None)
    wanted = "a configuration to submit, or the job's name"
    rules = {
        "give one of --cluster DIR and --address URL": not is_one_place,
        "--follow follows, --stop stops and follows: give one of them": given.follow and given.stop,
        f"give {wanted if given.address else 'a configuration to submit'}": not given.items,
        "with --address, --follow and --stop take the name of one job": (
            given.address and is_again and len(given.items) > 1
        ),
        "--dry-run sends nothing, so there is nothing to follow or to stop": (
            is_again and given.dry_run
        ),
        "--env, --working-dir and --no-wait go with --address": (
            given.cluster and (given.env or given.working_dir or given.no_wait)
        ),
        "with --cluster, --stop-on-interrupt goes with --follow": (
            given.cluster and given.stop_on_interrupt and not is_again
        ),
        "--context goes with --cluster": given.address and given.context,
    }
    return next((problem for problem, is_broken in rules.items() if is_broken), None)


def _to_kubernetes(given: Given, cluster: Path | None) -> int:
    """Create a RayJob made from an overlay's template, or follow one to its end."""
    from aae_dist.launch.submit import follow as following
    from aae_dist.launch.submit import kubernetes
    from aae_dist.launch.submit.jobs import follow_or_stop, read_work

    assert cluster is not None
    work = read_work(*read_items(given.items))
    if given.follow or given.stop:
        name = kubernetes.job_name(work, given.doctor)
        api = kubernetes.connect(work, cluster, given.context)
        if given.stop:
            following.stop(api, name)
        return follow_or_stop(
            lambda: following.follow(api, name),
            lambda: following.stop(api, name),
            f"rayjob/{name} continues; the same command with --stop stops it with a checkpoint",
            given.stop_on_interrupt,
        )
    settings, job = kubernetes.manifests(work, cluster, given.doctor)
    if given.dry_run:
        print(kubernetes.dump([settings, job]), end="")
        return 0
    api = kubernetes.connect(work, cluster, given.context)
    kubernetes.create(api, settings, job)
    where = ["--cluster", str(cluster), *(["--context", given.context] if given.context else [])]
    again = shlex.join([*where, *(["--doctor"] if given.doctor else []), *given.items])
    print(f"rayjob/{job['metadata']['name']} created")
    print(f"follow: aae-dist submit --follow {again}")
    print(f"stop:   aae-dist submit --stop {again}")
    print(f"state:  {api.words} get rayjob {job['metadata']['name']}")
    print(f"folder: {work.address}")
    return 0


def _to_ray(given: Given, address: str) -> int:
    """Submit a job to a running Ray cluster, or follow one to its end."""
    from aae_dist.launch.submit import jobs
    from aae_dist.launch.submit.jobs import read_work

    if given.follow or given.stop:
        return jobs.follow(given.items[0], address, given.stop, given.stop_on_interrupt)
    jobs.check_address(address)
    work = read_work(*read_items(given.items))
    jobs.check(work)
    if given.dry_run:
        print(f"# to {address}: {jobs.entrypoint('doctor' if given.doctor else work.verb)}")
        for name, _value in given.env:
            print(f"# with the variable {name}")
        print(work.text, end="")
        return 0
    return jobs.submit(
        work,
        address,
        dict(given.env),
        given.working_dir,
        not given.no_wait,
        given.stop_on_interrupt,
        given.doctor,
    )


DOCTOR_EXAMPLES = """\
examples:
  aae-dist doctor my.yaml
  aae-dist submit my.yaml --doctor --address http://localhost:8265
"""


@verb("check a place before money is spent there", DOCTOR_EXAMPLES)
@items_argument(required=False)
def doctor(items: tuple[str, ...]) -> int:
    """Check a place before money is spent there.

    Checks versions, GPUs, memory, disk, clocks, network, storage, W&B and dashboards: of this
    machine, or of all machines of the Ray cluster that RAY_ADDRESS names or whose job this is;
    there also that a job is accepted and that Ray Train and Tune run. Exit code 2 when a line is
    red; each says what to do.
    """
    from aae_dist.doctor.rules import count, lines
    from aae_dist.launch.submit.jobs import read_work

    work = read_work(*read_items(items)) if items else None
    red = 0
    for finding in findings(work):
        print(*lines([finding], sys.stdout.isatty()), sep="\n", flush=True)
        red += not finding.ok
    if work is None:
        print("storage, W&B and resources were not checked: give a configuration, as to `train`")
    print(f"{count(red, 'problem')} found" if red else "all is well")
    return 2 if red else 0


def findings(work: "Work | None") -> "Iterator[Finding]":
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
