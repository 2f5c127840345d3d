"""Parsers of the verbs that work on sweeps' folders; each imports its body when it runs."""

import argparse

from aae_dist.config.arguments import Parsers


def add_sweep_verbs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    """Add the verbs that take a sweep's folder."""
    parser = verbs.add_parser(
        "report",
        help="write the report of a sweep",
        description="Write report.html, one file to be read anywhere, and its pictures into the "
        "sweep's folder: while the sweep runs, or afterwards.",
        epilog="example:\n  aae-dist report s3://bucket/runs/priors-and-sizes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "uri", metavar="SWEEP", help="a sweep's folder: a local path, s3://, gs:// or az://"
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from aae_dist.report import make_report

    print(f"Report: {make_report(args.uri)}")
    return 0
