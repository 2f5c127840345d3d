"""The command line: `aae-dist VERB ...`.

Every verb imports what it needs when it runs, so that help and a wrong configuration cost no
import of torch or Ray.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from aae_dist.commands.cluster_parsers import add_cluster_verbs
from aae_dist.commands.one_line import OneLineParser
from aae_dist.commands.parsers import add_run_verbs
from aae_dist.commands.storage_parsers import add_storage_verbs
from aae_dist.commands.sweep_parsers import add_sweep_verbs
from aae_dist.config.arguments import Parsers
from aae_dist.config.redaction import log_redacted, redact
from aae_dist.errors import AaeDistError
from aae_dist.version import __version__

EXIT_CODES = """\
exit codes:
  0    done (a run that had already finished says so)
  1    a fault of aae-dist itself, with a traceback; or workers failed more often than allowed,
       or their networks drifted apart again and again
  2    something to correct in the configuration, the data, the storage or the cluster
  3    training diverged: gradients were not finite too many times in a row
  4    stopped as asked, with a checkpoint saved: the same command goes on from it
  130  stopped from the keyboard; 128 + signal when ended at once; 141 when the reader of its
       output went away
"""

TRAIN = """\
Train one run. Give YAML files, then overrides; later ones win. The same command, given again,
resumes the run from its newest checkpoint, and returns at once when the run has finished.
"""

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

TUNE = """\
Run many trials of one configuration: the `sweep` section says what is searched and how. The same
command, given again, returns finished trials as they are and resumes the others.
"""

TUNE_EXAMPLES = """\
examples:
  aae-dist tune configs/sweep/quick.yaml
  aae-dist tune configs/sweep/quick.yaml 'sweep.space.model.latent_dim={grid: [2, 16]}'
  aae-dist tune my.yaml sweep.search=optuna sweep.num_trials=50 --dry-run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one message on stderr."""
    return guarded(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def guarded(body: Callable[[], int]) -> int:
    """Return what `body` returns, or print its error and return the exit code of its class."""
    log_redacted()
    try:
        code = body()
        sys.stdout.flush()
    except AaeDistError as error:
        print(redact(f"aae-dist: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("aae-dist: stopped from the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); keep Python from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        print(redact(traceback.format_exc()), file=sys.stderr, end="")
        print("aae-dist: this is a fault of aae-dist; please report it", file=sys.stderr)
        return 1
    return code


def _run(argv: list[str]) -> int:
    if os.getcwd() not in sys.path:  # where one looks for priors and networks of one's own
        sys.path.append(os.getcwd())
    parser = build_parser(with_data=argv[:1] == ["data"])
    args, rest = parser.parse_known_args(argv)
    if rest:  # argparse stops collecting files and overrides at the first option between them
        args.items += rest
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int | None] = args.run
    return run(args) or 0


def build_parser(with_data: bool = True) -> argparse.ArgumentParser:
    """Return the parser of all verbs; those of `data` only when asked for, as they import numpy."""
    parser: argparse.ArgumentParser = OneLineParser(
        prog="aae-dist",
        description="Distributed training of adversarial autoencoders on sharded image data.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aae-dist {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    _add_items_verb(
        verbs,
        "train",
        _train,
        help="train a run, or resume it",
        description=TRAIN,
        examples=TRAIN_EXAMPLES,
        dry_run="print the resolved configuration and stop",
    )
    _add_items_verb(
        verbs,
        "tune",
        _tune,
        help="run a sweep over priors, latent sizes or any other key, or resume it",
        description=TUNE,
        examples=TUNE_EXAMPLES,
        dry_run="print the sweep and its trials and stop",
    )
    _add_data(verbs, with_data)
    add_cluster_verbs(verbs)
    add_run_verbs(verbs)
    add_storage_verbs(verbs)
    add_sweep_verbs(verbs)
    return parser


def _add_items_verb(
    verbs: "Parsers[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: str,
    dry_run: str,
) -> None:
    """Add a verb that takes a configuration: YAML files and overrides."""
    parser = verbs.add_parser(
        name,
        help=help,
        description=description,
        epilog=examples + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "items",
        nargs="+",
        metavar="FILE.yaml | key=value",
        help="YAML files in order, and overrides that win over all files",
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.set_defaults(run=run)


def _add_data(verbs: "Parsers[argparse.ArgumentParser]", with_commands: bool) -> None:
    parser = verbs.add_parser(
        "data",
        help="write shards from known data sets or folders, index shards",
        description="Write WebDataset shards, and write manifests of shards that exist.",
    )

    def show_help(args: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    parser.set_defaults(run=show_help)
    if with_commands:
        from aae_dist.commands.data_index import index
        from aae_dist.data.commands import add_data_commands

        add_data_commands(parser.add_subparsers(metavar="COMMAND", title="commands"), index)


def _tune(args: argparse.Namespace) -> int:
    from aae_dist.commands.tune import tune

    return tune(args.items, dry_run=args.dry_run)


def _train(args: argparse.Namespace) -> int:
    from aae_dist.commands.train import train

    return train(args.items, dry_run=args.dry_run)
