"""`aae-dist data pack`, `data index` and `data verify`: shards written, counted, read."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aae_dist.cli import options
from aae_dist.errors import DataError

if TYPE_CHECKING:
    from aae_dist.config.sections.run import Data

PACK_EXAMPLES = """\
examples:
  aae-dist data pack mnist --out data/mnist
  aae-dist data pack mnist --labelled 100 --out data/mnist-100
  aae-dist data pack folder --root photos --image-size 64 --out s3://bucket/photos
  aae-dist data pack csv --root photos/labels.csv --validation-fraction 0.2 --out data/photos
  aae-dist data pack npy --root genes.npy --labels tissues.npy --out data/genes
  aae-dist data pack celeba --crop-size 148 --image-size 64 --out data/celeba
"""
INDEX_EXAMPLES = """\
examples:
  aae-dist data index data/mnist/train
  aae-dist data index 's3://bucket/train-{000..511}.tar'
  aae-dist data index 'https://host/train-{00..11}.tar' --out train.json
"""
VERIFY_EXAMPLES = """\
examples:
  aae-dist data verify data/mnist/train
  aae-dist data verify s3://bucket/photos/train data.image_size=64 --json
"""
DIMENSION_EXAMPLES = """\
examples:
  aae-dist data dimension data/mnist/train
  aae-dist data dimension s3://bucket/photos/train data.image_size=64 --json
"""
PACKED = ("mnist", "fashion-mnist", "cifar10", "svhn", "celeba", "folder", "csv", "npy")
"""As `data.pack.NAMES`, which would cost an import of torch."""
own_files_option = options.titled_option("for folder, csv and npy")
shards_argument = click.argument(
    "items",
    nargs=-1,
    required=True,
    type=options.Item(),
    metavar="PATTERN | data.key=value",
    help="shards: a pattern, a folder, several of them; and settings of the section data",
)


@click.group(
    cls=options.Verbs, short_help="write shards from known data sets or folders, index shards"
)
def data() -> None:
    """Write WebDataset shards, and write manifests of shards that exist."""


@data.command(
    short_help="write a known data set, image files or an array as shards", epilog=PACK_EXAMPLES
)
@click.argument(
    "name", type=options.Choice(PACKED), metavar="NAME", help="one of the data sets or kinds above"
)
@click.option("--out", required=True, metavar="FOLDER", help="folder to write, absent or empty")
@click.option(
    "--root", metavar="PATH", help="what to pack; of known data sets, where they are kept"
)
@click.option(
    "--shard-samples", type=options.WholeNumber(1), default=5000, help="samples per shard"
)
@click.option(
    "--image-size",
    type=options.WholeNumber(1),
    help="scale and cut images to so many pixels a side",
)
@click.option(
    "--crop-size",
    type=options.WholeNumber(1),
    help="first cut out the centre square of so many pixels",
)
@click.option(
    "--labelled",
    type=options.WholeNumber(1),
    help="keep so many labels in OUT/train, balanced over classes; OUT/labelled has these samples",
)
@click.option(
    "--seed",
    type=options.WholeNumber(0, 2**64 - 1),
    default=0,
    help="another seed gives another split of folder, csv and npy, and other labelled samples",
)
@own_files_option(
    "--validation-fraction",
    type=options.Fraction(),
    default=0.1,
    help="part of the samples that becomes OUT/validation",
)
@own_files_option(
    "--validation-root",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="folder and csv only: the validation set, with the same numbers for the classes",
)
@own_files_option(
    "--classes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='numbers of the classes: the classes.json of another pack, ["cat", "dog"] or {"cat": 3}',
)
@own_files_option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="npy only: a .npy file of whole numbers",
)
def pack(name: str, out: str, root: str | None, **pack_options: Any) -> int:
    """Write WebDataset shards (tar files that any tool reads).

    They go to OUT/train and OUT/validation, each with a manifest.json, and are made of:
      mnist, fashion-mnist, cifar10, svhn, celeba
              the files that torchvision keeps in --root, downloaded unless they are there
      folder  images in the folder --root, which has one sub-folder for each class, or none: no
              labels; folders named train, val and test in it are the sets
      csv     images that the file --root lists, with the columns path and label (a whole number
              or a name)
      npy     the rows of the array in --root: images (uint8 [N, H, W], [N, H, W, C],
              [N, C, H, W]) or vectors ([N, D], written as float32 and read with
              data.image_keys=[npy])

    folder, csv and npy are split by the hash of each sample's path or row, keyed by --seed, unless
    the validation set is given. Paths and row numbers become the keys of samples. Image files are
    kept byte for byte unless --image-size or --crop-size is given.
    """
    from aae_dist.data import pack as packing

    done = packing.pack(name, out, root, packing.PackOptions(**pack_options))
    for part, count in done.items():
        print(f"{out.rstrip('/')}/{part}: {count} samples")
    return 0


@data.command(
    short_help="count the samples of shards and write their manifest", epilog=INDEX_EXAMPLES
)
@click.argument(
    "patterns",
    nargs=-1,
    required=True,
    type=options.Item(),
    metavar="PATTERN",
    help="shards: a pattern, a folder, several of them",
)
@click.option(
    "--out", metavar="FILE", help="manifest file, by default manifest.json next to the shards"
)
@click.option(
    "--ray", is_flag=True, help="count on the cluster of RAY_ADDRESS, not on this machine"
)
def index(patterns: tuple[str, ...], out: str | None, ray: bool) -> int:
    """Count the samples of shards and write manifest.json next to them.

    Training then starts without reading them all. The headers of every shard are read and checked;
    no shard is kept. Stopped, the same command resumes where it was.
    """
    from aae_dist.data.index.build import build_index

    with contextlib.ExitStack() as stack:
        executor = None
        if ray:
            from aae_dist.launch.ray.tasks import ray_executor

            executor = stack.enter_context(ray_executor())
        address, manifest = build_index(patterns, out, executor=executor)
    print(f"{address}: {len(manifest.shards)} shards, {manifest.num_samples} samples")
    return 0


@data.command(short_help="read every sample and report what is wrong", epilog=VERIFY_EXAMPLES)
@shards_argument
@click.option("--threads", type=options.WholeNumber(1), default=4, help="shards read at once")
@options.json_option
def verify(items: tuple[str, ...], threads: int, as_json: bool) -> int:
    """Read and decode every sample, and report which shards and samples cannot be used and why.

    Exit code 2 if there are any.
    """
    from aae_dist.data.index import verify as verification

    patterns, settings = _shards(items)
    found = verification.verify(patterns, settings, threads)
    print(json.dumps(found.document(), indent=2) if as_json else verification.report(found))
    verification.refuse_if_unsound(found)
    return 0


@data.command(
    short_help="estimate the intrinsic dimension, and which latent sizes to try",
    epilog=DIMENSION_EXAMPLES,
)
@shards_argument
@options.json_option
def dimension(items: tuple[str, ...], as_json: bool) -> int:
    """Estimate the intrinsic dimension of a data set, and propose latent sizes for a sweep.

    Two estimators look at the nearest neighbours of up to 5,000 samples, as pixels in [0, 1]; their
    disagreement is shown. Nothing is trained.
    """
    from aae_dist.evaluation import dimension as estimation

    found = estimation.dimension_of(*_shards(items))
    print(json.dumps(estimation.document(found), indent=2) if as_json else estimation.report(found))
    return 0


def _shards(items: tuple[str, ...]) -> tuple[list[str], "Data"]:
    """Return the patterns among the arguments, and the section data with the settings."""
    overrides = [item for item in items if item.startswith("data.") and "=" in item]
    patterns = [item for item in items if item not in overrides]
    if not patterns:
        raise DataError("no shards are named; give a pattern or a folder.")
    from aae_dist.config import load_config
    from aae_dist.config.load import absolute_storage

    patterns = [absolute_storage(pattern) for pattern in patterns]
    # JSON is YAML, and braces of a pattern need its quotes.
    run = ["run.name=shards", "train.steps=1", f"data.train={json.dumps(patterns)}"]
    return patterns, load_config([], [*run, *overrides]).config.data
