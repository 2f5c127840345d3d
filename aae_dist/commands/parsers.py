"""Parsers of the verbs that work on trained runs; each imports its body when it runs."""

import argparse

Parsers = argparse._SubParsersAction  # The only name that argparse has for what holds the verbs.


def add_run_verbs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    """Add the verbs that take a run's folder."""
    _add_evaluate(verbs)
    _add_sample(verbs)


def _add_evaluate(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="measure a trained run on its validation data",
        description="Measure how well the newest checkpoint of a run reconstructs its validation "
        "data, and how well its latent codes match its prior.",
    )
    _add_run_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.set_defaults(run=_evaluate)


def _add_sample(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "sample",
        help="decode samples of a trained run's prior into images",
        description="Draw from a run's prior and decode with its newest checkpoint.",
        epilog="example:\n  aae-dist sample ~/aae_dist/runs/quickstart --num 64 --out samples.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run_argument(parser)
    parser.add_argument(
        "--num", type=_positive, default=64, metavar="N", help="images to draw (default 64)"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".png (one grid), or .npy, .npz or .safetensors with `images`, "
        "float32 [N, C, H, W], pixels in [0, 1]",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed draws the same images (default 0)"
    )
    parser.set_defaults(run=_sample)


def _add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", metavar="RUN", help="a run's folder: a local path, s3://, gs:// or az://"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be at least 1, got {value}")
    return value


def _evaluate(args: argparse.Namespace) -> int:
    from aae_dist.commands.evaluate import evaluate

    return evaluate(args.uri, as_json=args.json)


def _sample(args: argparse.Namespace) -> int:
    from aae_dist.commands.sample import sample

    return sample(args.uri, num=args.num, out=args.out, seed=args.seed)
