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
  aae-dist submit my.yaml --address http://localhost:8265 --stop-on-interrupt
  aae-dist submit --follow quickstart-1a2b3c --address http://localhost:8265

--cluster fills in the RayJob of a kustomize overlay and applies it with kubectl; KubeRay starts a
Ray cluster for it and removes it afterwards. --address uses a Ray cluster that runs; the exit code
is then that of the job: 0 done, 2 something to correct, 3 diverged, 4 stopped with a checkpoint.
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
    ray.add_argument(
        "--stop-on-interrupt",
        action="store_true",
        help="Ctrl-C stops the job, with a checkpoint; by default it goes on alone",
    )
    ray.add_argument("--follow", metavar="JOB", help="follow a job that was submitted before")
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
    if bool(args.items) == bool(args.follow):
        parser.error("give a configuration to submit, or --follow JOB")
    only_ray = (args.env, args.working_dir, args.no_wait, args.stop_on_interrupt, args.follow)
    if args.cluster and any(only_ray):
        parser.error("--env, --working-dir, --no-wait, --follow and --stop-on-interrupt go with "
                     "--address")  # fmt: skip
    if args.address and args.context:
        parser.error("--context goes with --cluster")
    from aae_dist.commands import submit

    if args.cluster:
        return submit.to_kubernetes(
            args.items, args.cluster, args.context, args.dry_run, args.doctor
        )
    if args.follow:
        return submit.follow(args.follow, args.address, args.stop_on_interrupt)
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
