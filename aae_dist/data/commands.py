"""`aae-dist data pack`, `aae-dist data index` and `aae-dist data verify`."""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from aae_dist.config.arguments import Parsers, fraction, whole_number
from aae_dist.config.paths import absolute_storage
from aae_dist.errors import DataError

PACK = """\
Write WebDataset shards (tar files that any tool reads) with a manifest.json each to OUT/train and
OUT/validation:
  mnist, fashion-mnist, cifar10, svhn, celeba
          from the files that torchvision keeps in --root, downloaded unless they are there
  folder  images in the folder --root, which has one sub-folder for each class, or none: no labels
  csv     images that the file --root lists, with the columns path and label
  npy     the rows of the array in --root: images (uint8 [N, H, W], [N, H, W, C], [N, C, H, W])
          or vectors ([N, D], written as float32 and read with data.image_keys=[npy])
folder, csv and npy are split by the hash of each sample's path or row, keyed by --seed. Image files
are kept byte for byte unless --image-size or --crop-size is given.
"""

PACK_EXAMPLES = """\
examples:
  aae-dist data pack mnist --out data/mnist
  aae-dist data pack folder --root photos --image-size 64 --out s3://bucket/photos
  aae-dist data pack csv --root photos/labels.csv --validation-fraction 0.2 --out data/photos
  aae-dist data pack npy --root genes.npy --labels tissues.npy --out data/genes
  aae-dist data pack celeba --crop-size 148 --image-size 64 --out data/celeba
"""

INDEX = """\
Count the samples of shards and write manifest.json beside them, so that training starts without
reading them all. The headers of every shard are read and checked; no shard is kept. Stopped, the
same command goes on where it was.
"""

VERIFY = """\
Read and decode every sample, and tell which shards and samples cannot be used and why. Exit code 2
if there are any.
"""

VERIFY_EXAMPLES = """\
examples:
  aae-dist data verify data/mnist/train
  aae-dist data verify s3://bucket/photos/train data.image_size=64 --json
"""

INDEX_EXAMPLES = """\
examples:
  aae-dist data index data/mnist/train
  aae-dist data index 's3://bucket/train-{000..511}.tar'
  aae-dist data index 'https://host/train-{00..11}.tar' --out train.json
"""

PACKED = ("mnist", "fashion-mnist", "cifar10", "svhn", "celeba", "folder", "csv", "npy")
"""As `data.pack.NAMES`, which would cost an import of Pillow."""


def add_data_commands(
    subparsers: "Parsers[argparse.ArgumentParser]", index: Callable[[argparse.Namespace], int]
) -> None:
    """Add pack, index and verify to the parsers of `aae-dist data`; `index` runs the second."""
    _add_pack(subparsers)
    _add_index(subparsers, index)
    _add_verify(subparsers)


def _add_pack(subparsers: "Parsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "pack",
        help="write a known data set, image files or an array as shards",
        description=PACK,
        epilog=PACK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=PACKED)
    parser.add_argument("--out", required=True, help="folder to write, absent or empty")
    parser.add_argument("--root", help="what to pack; of known data sets, where they are kept")
    parser.add_argument("--labels", type=Path, help="npy only: a .npy file of whole numbers")
    parser.add_argument("--shard-samples", type=whole_number(1), default=5000, help="default 5000")
    parser.add_argument(
        "--image-size", type=whole_number(1), help="scale and cut images to so many pixels a side"
    )
    parser.add_argument(
        "--crop-size",
        type=whole_number(1),
        help="cut out the centre square of so many pixels before",
    )
    parser.add_argument(
        "--validation-fraction", type=fraction, default=0.1, help="folder, csv, npy: default 0.1"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="folder, csv, npy: another split (default 0)",
    )
    parser.set_defaults(run=run_pack)


def _add_index(
    subparsers: "Parsers[argparse.ArgumentParser]", index: Callable[[argparse.Namespace], int]
) -> None:
    parser = subparsers.add_parser(
        "index",
        help="count the samples of shards and write their manifest",
        description=INDEX,
        epilog=INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="+", help="shards: a pattern, a folder, several of them")
    parser.add_argument("--out", help="manifest file, by default manifest.json beside the shards")
    parser.add_argument(
        "--ray",
        action="store_true",
        help="count on the cluster of RAY_ADDRESS, not on this machine",
    )
    parser.set_defaults(run=index)


def _add_verify(subparsers: "Parsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "verify",
        help="read every sample and tell what is wrong",
        description=VERIFY,
        epilog=VERIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "items",
        nargs="+",
        metavar="PATTERN | data.key=value",
        help="shards: a pattern, a folder, several of them; and settings of the section data",
    )
    parser.add_argument(
        "--threads", type=whole_number(1), default=4, help="shards at a time, default 4"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=run_verify)


def run_pack(args: argparse.Namespace) -> int:
    """Pack; return the exit code."""
    from aae_dist.data.pack import PackOptions, pack

    options = PackOptions(
        shard_samples=args.shard_samples,
        image_size=args.image_size,
        crop_size=args.crop_size,
        validation_fraction=args.validation_fraction,
        seed=args.seed,
        labels=args.labels,
    )
    counts = pack(args.name, args.out, args.root, options)
    for name, count in counts.items():
        print(f"{args.out.rstrip('/')}/{name}: {count} samples")
    return 0


def run_index(args: argparse.Namespace, executor: Executor | None = None) -> int:
    """Index; return the exit code."""
    from aae_dist.data.index.build import build_index

    address, manifest = build_index(args.pattern, args.out, executor=executor)
    print(f"{address}: {len(manifest.shards)} shards, {manifest.num_samples} samples")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Verify; return the exit code."""
    from aae_dist.config.loading.load import load_config
    from aae_dist.data.index.verify import refuse_if_unsound, report, verify

    overrides = [item for item in args.items if item.startswith("data.") and "=" in item]
    patterns = [absolute_storage(item) for item in args.items if item not in overrides]
    if not patterns:
        raise DataError("no shards are named; give a pattern or a folder.")
    # JSON is YAML, and braces of a pattern need its quotes.
    items = ["run.name=verify", "train.steps=1", f"data.train={json.dumps(patterns)}", *overrides]
    settings = load_config([], items).config.data
    found = verify(patterns, settings, args.threads)
    print(json.dumps(found.document(), indent=2) if args.json else report(found))
    refuse_if_unsound(found)
    return 0
