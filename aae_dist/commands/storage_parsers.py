"""Parsers of the verbs that look at folders of runs."""

import argparse

from aae_dist.commands import help_texts
from aae_dist.config.arguments import Parsers


def add_storage_verbs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    """Add the verbs that take a folder of runs."""
    _add_runs(verbs)


def _add_runs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "runs",
        help="list runs with their state, step and scores",
        description=help_texts.RUNS,
        epilog=help_texts.RUNS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "uri",
        nargs="?",
        default="~/aae_dist/runs",
        metavar="STORAGE",
        help="run.storage of the runs (default ~/aae_dist/runs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with all metrics")
    parser.set_defaults(run=_runs)


def _runs(args: argparse.Namespace) -> int:
    from aae_dist.commands.runs import runs

    return runs(args.uri, args.json)
