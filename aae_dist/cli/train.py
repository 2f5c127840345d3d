"""Verbs that take a configuration: `aae-dist train`, `tune`, `submit` and `doctor`."""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aae_dist.cli.inspect import print_metrics, print_recommendation, print_verdict, results
from aae_dist.cli.options import EXIT_CODES, items_argument, read_items, titled_option, verb

if TYPE_CHECKING:
    from aae_dist.sweeps.ledger import Ledger
    from aae_dist.sweeps.plan import SweepPlan

TRAIN_EXAMPLES = """\
examples:
  aae-dist train configs/quickstart.yaml
  aae-dist train configs/quickstart.yaml configs/prior/mixture.yaml run.name=mixture
  aae-dist train my.yaml train.steps=5000 prior.kind=swiss_roll model.latent_dim=2
  aae-dist train my.yaml 'data.train=["s3://bucket/a-{000..011}.tar", "s3://bucket/b.tar"]'
  aae-dist train my.yaml launch.kind=local --dry-run

values are YAML: 1e-4 is a number, [a, b] a list, {kind: mixture} a map, null nothing.
Maps merge and lists replace. Changing `kind` keeps the fields that both kinds have.

"""


@verb("train a run, or resume it", TRAIN_EXAMPLES + EXIT_CODES)
@items_argument()
@click.option("--dry-run", is_flag=True, help="print the resolved configuration and stop")
def train(items: tuple[str, ...], dry_run: bool) -> int:
    """Train one run, or resume it.

    Give YAML files, then overrides; later ones win. The same command, given again, resumes the run
    from its newest checkpoint, and returns at once when the run has finished.
    """
    from aae_dist.config import dump_yaml, load_config

    loaded = load_config(*read_items(items))
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print(dump_yaml(loaded.config), end="")
        return 0
    from aae_dist.distributed.world import from_environment
    from aae_dist.launch import launch

    outcome = launch(loaded.config)
    if not from_environment("cpu").is_main:  # under torchrun every rank reaches this line
        return 0
    if outcome.state == "already_finished":
        print(
            f"This run had already finished at step {outcome.step:,}: nothing was trained. "
            "To train on, raise train.steps or train.epochs; for another run, change run.name."
        )
    print_metrics(results(outcome.metrics), title=f"Result at step {outcome.step:,}")
    print(f"Run folder: {outcome.run_uri}")
    print(f"Pictures:   {outcome.run_uri}/pictures/")
    print_verdict(outcome.verdict)
    return 0


TUNE_EXAMPLES = """\
examples:
  aae-dist tune configs/sweep/quick.yaml
  aae-dist tune configs/sweep/quick.yaml 'sweep.space.model.latent_dim={grid: [2, 16]}'
  aae-dist tune my.yaml sweep.search=optuna sweep.num_trials=50 --dry-run
  aae-dist tune my.yaml --more
  aae-dist tune my.yaml launch.kind=local

"""
LISTED = 100  # trials that a dry run lists
BEST = 5  # trials that the end of a sweep shows


@verb(
    "run a sweep over priors, latent sizes or any other key, or resume it",
    TUNE_EXAMPLES + EXIT_CODES,
)
@items_argument()
@click.option("--dry-run", is_flag=True, help="print the sweep and its trials and stop")
@click.option(
    "--more", is_flag=True, help="add the seeds that the recommendation of an ended sweep asks for"
)
def tune(items: tuple[str, ...], dry_run: bool, more: bool) -> int:
    """Run many trials of one configuration.

    The `sweep` section says what is searched and how. The same command, given again, returns
    finished trials as they are and resumes the others. At the end one sentence recommends
    parameters; --more adds seeds where there are too few to choose.
    """
    from aae_dist.sweeps.plan import load_sweep

    plan = load_sweep(*read_items(items))
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        _show_plan(plan)
        return 0
    from aae_dist.tune import start_sweep

    _show_end(start_sweep(plan, more))
    return 0


def _show_plan(plan: "SweepPlan") -> None:
    from aae_dist.config.yaml import dump
    from aae_dist.sweeps.plan import describe

    print(dump({"sweep": plan.sweep.model_dump(mode="json")}), end="")
    print(f"\n# Folder: {plan.uri}")
    print(
        f"# {plan.num_trials} trials" + ("" if plan.trials else ", proposed by Optuna as it goes")
    )
    for trial in plan.trials[:LISTED]:
        print(f"#   {trial.label:>5}  {trial.id}  {describe(trial.parameters)}")
    if len(plan.trials) > LISTED:
        print(f"#   ... and {len(plan.trials) - LISTED} more")
    print(
        "\n# The configuration of " + ("the first trial:" if plan.trials else "a possible trial:")
    )
    print(dump(plan.configs[0].model_dump(mode="json")), end="")


def _show_end(ledger: "Ledger") -> None:
    from aae_dist.sweeps.folder import TrialState
    from aae_dist.sweeps.plan import describe
    from aae_dist.training.folder import match_of

    counts = {state: count for state, count in ledger.counts().items() if count}
    print(f"Trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    for entry in ledger.in_state(TrialState.FAILED):
        label = entry.plan.label
        print(f"  failed: trial {label}, {describe(entry.plan.parameters)}: {entry.cause}")
    if ledger.objective.is_pareto:
        print(f"Pareto front of {ledger.objective} first, its knee point on top:")
    else:
        print(f"Best by {ledger.objective}:")
    for entry in ledger.ranked()[:BEST]:
        values = ledger.objective.values(entry.metrics) or ()
        shown = ", ".join(f"{value:.4g}" for value in values)
        parameters, plan = describe(entry.values or entry.plan.parameters), entry.plan
        match = match_of(entry.metrics)
        rated = f", {match} match" if match else ""
        print(f"  {shown}  {parameters}  (trial {plan.label}, {plan.id}{rated})")
    print_recommendation(ledger.recommendation())
    print(f"Sweep folder: {ledger.plan.uri}, report: {ledger.plan.uri}/report.html")
    print(f"Train the best on its own: aae-dist train {ledger.plan.uri}/best.yaml")


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
    from aae_dist.launch.submit import follow, jobs, kubernetes

    assert cluster is not None
    work = jobs.read_work(*read_items(given.items))
    if given.follow or given.stop:
        name = kubernetes.job_name(work, given.doctor)
        api = kubernetes.connect(work, cluster, given.context)
        if given.stop:
            follow.stop(api, name)
        return jobs.follow_or_stop(
            lambda: follow.follow(api, name),
            lambda: follow.stop(api, name),
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

    if given.follow or given.stop:
        return jobs.follow(given.items[0], address, given.stop, given.stop_on_interrupt)
    jobs.check_address(address)
    work = jobs.read_work(*read_items(given.items))
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
    from aae_dist.doctor import rules
    from aae_dist.launch.submit.jobs import read_work

    work = read_work(*read_items(items)) if items else None
    config = work.config if work else None
    on_ray = config is None or config.launch.kind == "ray"
    if not (on_ray and os.environ.get("RAY_ADDRESS")):
        from aae_dist.doctor.probes import check_machine

        found = check_machine(config)
    elif find_spec("ray") is None:
        problem = "not installed, and RAY_ADDRESS is set"
        found = iter([rules.bad("ray", problem, "pip install 'aae_dist[ray]'")])
    else:
        from aae_dist.doctor.ray import check_cluster

        found = check_cluster(config, is_sweep=work is not None and work.verb == "tune")
    red = 0
    for finding in found:  # each is printed when it is known
        print(*rules.lines([finding], sys.stdout.isatty()), sep="\n", flush=True)
        red += not finding.ok
    if work is None:
        print("storage, W&B and resources were not checked: give a configuration, as to `train`")
    print(f"{rules.count(red, 'problem')} found" if red else "all is well")
    return 2 if red else 0
