"""Parsers of the verbs that work on trained runs; each imports its body when it runs."""

import argparse

from aae_dist.commands import help_texts
from aae_dist.config.arguments import Parsers, whole_number


def add_run_verbs(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    """Add the verbs that take a run's folder."""
    _add_encode(verbs)
    _add_evaluate(verbs)
    _add_export(verbs)
    _add_interpolate(verbs)
    _add_reconstruct(verbs)
    _add_sample(verbs)


def _add_encode(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "encode",
        "write the latent codes of a whole data set",
        help_texts.ENCODE,
        help_texts.ENCODE_EXAMPLES,
    )
    _add_items(parser)
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where to: a path, s3://, gs:// or az://"
    )
    parser.add_argument(
        "--format",
        choices=("parquet", "npy"),
        default="parquet",
        help="parquet (key, label, code) or npy (NAME.codes.npy, .labels.npy, .keys.npy)",
    )
    parser.set_defaults(run=_encode)


def _add_evaluate(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "evaluate",
        "measure a trained run on data",
        help_texts.EVALUATE,
        help_texts.EVALUATE_EXAMPLES,
    )
    _add_items(parser)
    _add_data(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.set_defaults(run=_evaluate)


def _add_export(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "export",
        "write encoder and decoder as programs of their own",
        help_texts.EXPORT,
        help_texts.EXPORT_EXAMPLES,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--format",
        choices=("torch", "onnx"),
        default="torch",
        help="torch: .pt2, for torch.export.load (default); onnx: .onnx, for any ONNX runtime",
    )
    parser.set_defaults(run=_export)


def _add_interpolate(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "interpolate",
        "decode ways through the latent space",
        help_texts.INTERPOLATE,
        help_texts.INTERPOLATE_EXAMPLES,
    )
    _add_items(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help=help_texts.IMAGE_FILE)
    parser.add_argument("--kind", choices=("pairs", "plane", "traverse"), default="pairs")
    parser.add_argument(
        "--num", type=whole_number(1), default=8, metavar="N", help="rows of pairs (default 8)"
    )
    parser.add_argument(
        "--steps", type=whole_number(2), default=10, metavar="N", help="images a row (default 10)"
    )
    parser.add_argument(
        "--path",
        choices=("auto", "linear", "spherical"),
        default="auto",
        help="auto: spherical for a prior on a sphere and a Gaussian above 2 dimensions, whose "
        "mass a straight line would leave; else linear",
    )
    parser.add_argument(
        "--from",
        choices=("data", "prior"),
        default="data",
        dest="source",
        help="start and end at codes of data samples (default) or at samples of the prior",
    )
    _add_data(parser)
    _add_seed(parser)
    parser.set_defaults(run=_interpolate)


def _add_reconstruct(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "reconstruct",
        "show or write what a run makes of images",
        help_texts.RECONSTRUCT,
        help_texts.RECONSTRUCT_EXAMPLES,
    )
    _add_items(parser)
    parser.add_argument("--out", required=True, metavar="FILE or FOLDER")
    parser.add_argument(
        "--num", type=whole_number(1), default=32, metavar="N", help="images in a file (default 32)"
    )
    parser.set_defaults(run=_reconstruct)


def _add_sample(verbs: "Parsers[argparse.ArgumentParser]") -> None:
    parser = _verb(
        verbs,
        "sample",
        "decode samples of a run's prior into images",
        help_texts.SAMPLE,
        help_texts.SAMPLE_EXAMPLES,
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="train.device=auto|cuda",
        help="where to decode (default: the CPU)",
    )
    parser.add_argument(
        "--num",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="images to draw, of each class if --classes is given (default 64)",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=help_texts.IMAGE_FILE)
    parser.add_argument(
        "--classes", metavar="0,1,..|all", help="classes of the prior; a .png has a row for each"
    )
    _add_seed(parser)
    parser.set_defaults(run=_sample)


def _verb(
    verbs: "Parsers[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "uri", metavar="RUN", help="a run's folder: a local path, s3://, gs:// or az://"
    )
    parser.add_argument(
        "--step",
        type=whole_number(1),
        metavar="N",
        help="the checkpoint of step N (default: newest)",
    )
    return parser


def _add_items(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "items",
        nargs="*",
        metavar="DATA | key=value",
        help="shards: patterns or folders, as for data.train (default: the run's validation "
        "shards); and overrides of data.* and train.device, and where whole data sets are written "
        "of launch.*",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="the same as DATA",
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed",
        type=whole_number(),
        default=0,
        help="the same seed draws the same images (default 0)",
    )


def _items(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return patterns of shards, and overrides."""
    from aae_dist.config.inference import split_items

    return split_items([*getattr(args, "data", ()), *args.items])


def _encode(args: argparse.Namespace) -> int:
    from aae_dist.commands.apply import apply

    data, overrides = _items(args)
    return apply(args.uri, data, args.out, args.format, overrides, args.step)


def _evaluate(args: argparse.Namespace) -> int:
    from aae_dist.commands.evaluate import evaluate

    data, overrides = _items(args)
    return evaluate(args.uri, args.json, data, args.step, overrides)


def _export(args: argparse.Namespace) -> int:
    from aae_dist.commands.export import export

    return export(args.uri, args.out, args.format, args.step)


def _interpolate(args: argparse.Namespace) -> int:
    from aae_dist.commands.interpolate import Ways, interpolate

    data, overrides = map(tuple, _items(args))
    ways = Ways(
        kind=args.kind,
        num=args.num,
        steps=args.steps,
        path=args.path,
        source=args.source,
        data=data,
        overrides=overrides,
        seed=args.seed,
    )
    return interpolate(args.uri, args.out, ways, args.step)


def _reconstruct(args: argparse.Namespace) -> int:
    from aae_dist.commands.reconstruct import reconstruct

    data, overrides = _items(args)
    return reconstruct(args.uri, args.out, data, args.num, overrides, args.step)


def _sample(args: argparse.Namespace) -> int:
    from aae_dist.commands.sample import sample

    return sample(args.uri, args.num, args.out, args.seed, args.classes, args.step, args.items)
