"""`aae-dist train` and `tune`: configuration in, a trained run or a folder of compared runs out."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from aae_dist.cli.inspect import print_metrics, results
from aae_dist.cli.options import EXIT_CODES, items_argument, read_items, verb
from aae_dist.errors import LaunchError

if TYPE_CHECKING:
    from aae_dist.sweeps.ledger import Ledger
    from aae_dist.sweeps.plan import SweepPlan
    from aae_dist.training.folder import Outcome

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
    if from_environment("cpu").is_main:  # under torchrun every rank reaches this line
        _show(outcome)
    return 0


def _show(outcome: "Outcome") -> None:
    if outcome.state == "already_finished":
        print(
            f"This run had already finished at step {outcome.step:,}: nothing was trained. "
            "To train on, raise train.steps or train.epochs; for another run, change run.name."
        )
    print_metrics(results(outcome.metrics), title=f"Result at step {outcome.step:,}")
    print(f"Run folder: {outcome.run_uri}")
    print(f"Pictures:   {outcome.run_uri}/pictures/")


TUNE_EXAMPLES = """\
examples:
  aae-dist tune configs/sweep/quick.yaml
  aae-dist tune configs/sweep/quick.yaml 'sweep.space.model.latent_dim={grid: [2, 16]}'
  aae-dist tune my.yaml sweep.search=optuna sweep.num_trials=50 --dry-run

"""
LISTED = 100
"""Trials that a dry run lists."""
BEST = 5
"""Trials that the end of a sweep shows."""


@verb(
    "run a sweep over priors, latent sizes or any other key, or resume it",
    TUNE_EXAMPLES + EXIT_CODES,
)
@items_argument()
@click.option("--dry-run", is_flag=True, help="print the sweep and its trials and stop")
def tune(items: tuple[str, ...], dry_run: bool) -> int:
    """Run many trials of one configuration.

    The `sweep` section says what is searched and how. The same command, given again, returns
    finished trials as they are and resumes the others.
    """
    from aae_dist.sweeps.plan import load_sweep

    plan = load_sweep(*read_items(items))
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        _show_plan(plan)
        return 0
    if find_spec("ray") is None:
        raise LaunchError(
            "aae-dist tune needs Ray Tune, which is not installed: pip install 'aae_dist[ray]'"
        )
    from aae_dist.report import write_report
    from aae_dist.tune.sweep import launch_sweep

    _show_end(launch_sweep(plan, write_report))
    return 0


def _show_plan(plan: "SweepPlan") -> None:
    from aae_dist.config.loading.yaml import dump
    from aae_dist.sweeps.plan import describe

    print(dump({"sweep": plan.sweep.model_dump(mode="json")}), end="")
    print(f"\n# Folder: {plan.uri}")
    print(
        f"# {plan.num_trials} trials" + ("" if plan.trials else ", proposed by Optuna as it goes")
    )
    for trial in plan.trials[:LISTED]:
        print(f"#   {trial.id}  {describe(trial.parameters)}")
    if len(plan.trials) > LISTED:
        print(f"#   ... and {len(plan.trials) - LISTED} more")
    print(
        "\n# The configuration of " + ("the first trial:" if plan.trials else "a possible trial:")
    )
    print(dump(plan.configs[0].model_dump(mode="json")), end="")


def _show_end(ledger: "Ledger") -> None:
    from aae_dist.sweeps.folder import TrialState
    from aae_dist.sweeps.plan import describe

    counts = {state: count for state, count in ledger.counts().items() if count}
    print(f"Trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    for entry in ledger.in_state(TrialState.FAILED):
        print(f"  failed: {describe(entry.plan.parameters)}: {entry.cause}")
    print(f"Best by {ledger.objective}:")
    for entry in ledger.ranked()[:BEST]:
        values = ledger.objective.values(entry.metrics) or ()
        shown = ", ".join(f"{value:.4g}" for value in values)
        print(f"  {shown}  {describe(entry.values or entry.plan.parameters)}  ({entry.plan.id})")
    print(f"Sweep folder: {ledger.plan.uri}, report: {ledger.plan.uri}/report.html")
    print(f"Train the best on its own: aae-dist train {ledger.plan.uri}/best.yaml")
