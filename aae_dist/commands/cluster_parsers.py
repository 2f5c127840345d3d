"""Parsers of the verbs that reach other machines; each imports its body when it runs."""

import argparse
from pathlib import Path

from aae_dist.config.arguments import Parsers

SUBMIT = """\
Send a run, or a sweep, to a cluster. The configuration is checked here first, so that a mistake
costs no machine. Submitting again what has ended resumes it; what has finished returns at once.
"""

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


def add_cluster_verbs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    """Add the verbs that reach other machines."""
    _add_submit(verbs)
    _add_doctor(verbs)


def add_items(parser: argparse.ArgumentParser, needed: str = "+") -> None:
    """Add the files and overrides of a configuration."""
    parser.add_argument(
        "items",
        nargs=needed,
        metavar="FILE.yaml | key=value",
        help="YAML files in order, and overrides that win over all files",
    )


def _add_submit(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "submit",
        help="send a run or a sweep to a Kubernetes or Ray cluster",
        description=SUBMIT,
        epilog=SUBMIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_items(parser, needed="*")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--cluster", type=Path, metavar="DIR", help="a kustomize overlay")
    place.add_argument("--address", metavar="URL", help="a Ray dashboard, http://HOST:8265")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, and ask no cluster"
    )
    parser.add_argument(
        "--doctor", action="store_true", help="check the cluster for this run, and train nothing"
    )
    again = parser.add_argument_group(
        "for what was submitted before, named by its configuration, or with --address by its job"
    )
    what = again.add_mutually_exclusive_group()
    what.add_argument("--follow", action="store_true", help="show its log until it ends")
    what.add_argument(
        "--stop", action="store_true", help="stop it with a checkpoint, and follow it to its end"
    )
    parser.add_argument(
        "--stop-on-interrupt",
        action="store_true",
        help="when following, Ctrl-C stops the job with a checkpoint; by default it continues",
    )
    kubernetes = parser.add_argument_group("with --cluster")
    kubernetes.add_argument("--context", metavar="NAME", help="kubectl's context")
    ray = parser.add_argument_group("with --address")
    ray.add_argument(
        "--env",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=VALUE",
        help="a variable of the job, shown in the dashboard: nothing secret",
    )
    ray.add_argument(
        "--working-dir",
        type=Path,
        metavar="DIR",
        help="files of yours for the job's working directory, such as a prior (at most 512 MiB)",
    )
    ray.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.set_defaults(run=lambda args: _submit(parser, args))


def _add_doctor(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "doctor",
        help="check a place before money is spent there",
        description="Check versions, GPUs, memory, disk, clocks, network, storage, W&B and open "
        "dashboards: of this machine, or of all machines of the Ray cluster that RAY_ADDRESS "
        "names or whose job this is. Exit code 2 when a line is red; each says what to do.",
        epilog="examples:\n  aae-dist doctor my.yaml\n"
        "  aae-dist submit my.yaml --doctor --address http://localhost:8265",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_items(parser, needed="*")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from aae_dist.commands.doctor import doctor

    return doctor(args.items)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"should be NAME=VALUE, got {text!r}")
    return name, value


def _submit(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if problem := _contradiction(args):
        parser.error(problem)
    from aae_dist.commands import submit

    is_again = args.follow or args.stop
    if args.cluster and is_again:
        return submit.follow_kubernetes(
            args.items, args.cluster, args.context, args.doctor, args.stop, args.stop_on_interrupt
        )
    if args.cluster:
        return submit.to_kubernetes(
            args.items, args.cluster, args.context, args.dry_run, args.doctor
        )
    if is_again:
        return submit.follow_ray(args.items[0], args.address, args.stop, args.stop_on_interrupt)
    return submit.to_ray(
        args.items,
        args.address,
        env=dict(args.env),
        folder=args.working_dir,
        wait=not args.no_wait,
        stop_on_interrupt=args.stop_on_interrupt,
        dry_run=args.dry_run,
        doctor=args.doctor,
    )


def _contradiction(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    is_again = args.follow or args.stop
    if not args.items:
        return "give a configuration to submit" + ", or the job's name" * bool(args.address)
    if args.address and is_again and len(args.items) > 1:
        return "with --address, --follow and --stop take the name of one job"
    if is_again and args.dry_run:
        return "--dry-run sends nothing, so there is nothing to follow or to stop"
    if args.cluster and (args.env or args.working_dir or args.no_wait):
        return "--env, --working-dir and --no-wait go with --address"
    if args.cluster and args.stop_on_interrupt and not is_again:
        return "with --cluster, --stop-on-interrupt goes with --follow"
    if args.address and args.context:
        return "--context goes with --cluster"
    return None
