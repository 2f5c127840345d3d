"""`aae-dist data pack` and `aae-dist data index`."""

import argparse
import sys

PACK = """\
Write OUT/train and OUT/validation: WebDataset shards (tar files that any tool reads) with a
manifest.json each. mnist and fashion-mnist are downloaded to --root unless they are there; folder
takes images from --root, which has one sub-folder for each class.
"""

PACK_EXAMPLES = """\
examples:
  aae-dist data pack mnist --out data/mnist
  aae-dist data pack folder --root photos --image-size 64 --out s3://bucket/photos
"""

INDEX = """\
Count the samples of shards and write manifest.json beside them, so that training starts without
reading them all. Every shard is read and checked.
"""

INDEX_EXAMPLES = """\
examples:
  aae-dist data index data/mnist/train
  aae-dist data index 's3://bucket/train-{000..511}.tar'
  aae-dist data index 'https://host/train-{00..11}.tar' --out train.json
"""

Subparsers = argparse._SubParsersAction  # The only name that argparse has for it.


def add_data_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add pack and index to the parsers of `aae-dist data`."""
    _add_pack(subparsers)
    _add_index(subparsers)


def _add_pack(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "pack",
        help="write mnist, fashion-mnist or a folder of images as shards",
        description=PACK,
        epilog=PACK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=("mnist", "fashion-mnist", "folder"))
    parser.add_argument("--out", required=True, help="folder to write, absent or empty")
    parser.add_argument("--root", help="where the images are, or are downloaded to")
    parser.add_argument("--shard-samples", type=_positive, default=5000, help="default 5000")
    parser.add_argument(
        "--image-size", type=_positive, help="folder only: crop and resize to this many pixels"
    )
    parser.add_argument(
        "--validation-fraction", type=float, default=0.1, help="folder only: default 0.1"
    )
    parser.set_defaults(run=run_pack)


def _add_index(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "index",
        help="count the samples of shards and write their manifest",
        description=INDEX,
        epilog=INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="+", help="shards: a pattern, a folder, several of them")
    parser.add_argument("--out", help="manifest file, by default manifest.json beside the shards")
    parser.set_defaults(run=run_index)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {text})")
    return value


def run_pack(args: argparse.Namespace) -> int:
    """Pack; return the exit code."""
    from aae_dist.data.pack import PackOptions, pack

    options = PackOptions(args.shard_samples, args.image_size, args.validation_fraction)
    counts = pack(args.name, args.out, args.root, options)
    for name, count in counts.items():
        print(f"{args.out.rstrip('/')}/{name}: {count} samples")
    return 0


def run_index(args: argparse.Namespace) -> int:
    """Index; return the exit code."""
    from aae_dist.data.index import build_index

    address, manifest = build_index(
        args.pattern, args.out, lambda text: print(text, file=sys.stderr)
    )
    print(f"{address}: {len(manifest.shards)} shards, {manifest.num_samples} samples")
    return 0
