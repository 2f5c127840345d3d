"""`aae-dist tune`: a search space in, a folder of compared runs out."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import EXIT_CODES, RawHelp, items_argument, read_items
from aae_dist.errors import LaunchError

if TYPE_CHECKING:
    from aae_dist.sweeps.ledger import Ledger
    from aae_dist.sweeps.plan import SweepPlan

EXAMPLES = """\
examples:
  aae-dist tune configs/sweep/quick.yaml
  aae-dist tune configs/sweep/quick.yaml 'sweep.space.model.latent_dim={grid: [2, 16]}'
  aae-dist tune my.yaml sweep.search=optuna sweep.num_trials=50 --dry-run

"""
LISTED = 100
"""Trials that a dry run lists."""
BEST = 5
"""Trials that the end of a sweep shows."""


@click.command(
    cls=RawHelp,
    short_help="run a sweep over priors, latent sizes or any other key, or resume it",
    epilog=EXAMPLES + EXIT_CODES,
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
