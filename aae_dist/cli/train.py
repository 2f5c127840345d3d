"""`aae-dist train`: configuration in, a trained run out."""

import sys
from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import EXIT_CODES, RawHelp, items_argument, read_items

if TYPE_CHECKING:
    from aae_dist.training.reporter import Outcome

EXAMPLES = """\
examples:
  aae-dist train configs/quickstart.yaml
  aae-dist train configs/quickstart.yaml configs/prior/mixture.yaml run.name=mixture
  aae-dist train my.yaml train.steps=5000 prior.kind=swiss_roll model.latent_dim=2
  aae-dist train my.yaml 'data.train=["s3://bucket/a-{000..011}.tar", "s3://bucket/b.tar"]'
  aae-dist train my.yaml launch.kind=local --dry-run

values are YAML: 1e-4 is a number, [a, b] a list, {kind: mixture} a map, null nothing.
Maps merge and lists replace. Changing `kind` keeps the fields that both kinds have.

"""


@click.command(cls=RawHelp, short_help="train a run, or resume it", epilog=EXAMPLES + EXIT_CODES)
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
    from aae_dist.cli.inspect import print_metrics, results

    if outcome.state == "already_finished":
        print(
            f"This run had already finished at step {outcome.step:,}: nothing was trained. "
            "To train on, raise train.steps or train.epochs; for another run, change run.name."
        )
    print_metrics(results(outcome.metrics), title=f"Result at step {outcome.step:,}")
    print(f"Run folder: {outcome.run_uri}")
    print(f"Pictures:   {outcome.run_uri}/pictures/")
