"""`aae-dist data index`: on this machine's threads, or on the nodes of a Ray cluster."""

import argparse

from aae_dist.data.commands import run_index


def index(args: argparse.Namespace) -> int:
    """Index; return the exit code."""
    if not args.ray:
        return run_index(args)
    from aae_dist.launch.ray.executor import ray_executor

    with ray_executor() as executor:
        return run_index(args, executor)
