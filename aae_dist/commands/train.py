"""`aae-dist train`: configuration in, a trained run out."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aae_dist.commands.items import split_items
from aae_dist.commands.tables import print_metrics, results
from aae_dist.config import dump_yaml, load_config

if TYPE_CHECKING:
    from aae_dist.training.outcome import Outcome


def train(items: Sequence[str], dry_run: bool = False) -> int:
    """Train, or resume, the run that files and overrides describe, and show how it ended.

    Args:
        items: YAML files and `key=value` overrides, in any order among each other.
        dry_run: print the resolved configuration and stop.

    Raises:
        ConfigError: something in the configuration is wrong; all problems are named.
        Interrupted: a stop was asked for; a checkpoint is saved.
        AaeDistError: what the launcher or the training found.
    """
    files, overrides = split_items(items)
    loaded = load_config(files, overrides)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print(dump_yaml(loaded.config), end="")
        return 0
    from aae_dist.distributed.world import from_environment
    from aae_dist.launch import launch

    outcome = launch(loaded.config)
    if from_environment("cpu").is_main:  # under torchrun every rank comes by here
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
