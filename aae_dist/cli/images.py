"""A trained run applied: sample, interpolate, reconstruct, and encode for a whole data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from aae_dist.cli import options
from aae_dist.errors import ConfigError

if TYPE_CHECKING:
    from aae_dist.data import Manifest
    from aae_dist.inference.dataset_job import DatasetJob
    from aae_dist.inference.trained_run import TrainedRun

SAMPLE_EXAMPLES = """\
examples:
  aae-dist sample runs/quickstart --num 64 --out samples.png
  aae-dist sample runs/quickstart --classes all --num 10 --out classes.png
  aae-dist sample runs/quickstart --sampler gmm --out samples.png
"""
INTERPOLATE_EXAMPLES = """\
examples:
  aae-dist interpolate runs/quickstart --out pairs.png
  aae-dist interpolate runs/quickstart --kind plane --steps 20 --out plane.png
  aae-dist interpolate runs/quickstart --kind traverse --from prior --out traverse.npy
"""
RECONSTRUCT_EXAMPLES = """\
examples:
  aae-dist reconstruct runs/quickstart --out reconstructions.png
  aae-dist reconstruct runs/quickstart builtin://digits/train --out reconstructed
"""
IMAGE_FILE = (
    ".png (one grid), or .npy, .npz or .safetensors with `images`, float32 [N, C, H, W], "
    "pixels in [0, 1]"
)
out_option = click.option("--out", required=True, metavar="FILE", help=IMAGE_FILE)


@options.verb("decode samples of a run's prior into images", SAMPLE_EXAMPLES)
@options.run_argument
@click.argument(
    "items",
    nargs=-1,
    type=options.Item(),
    metavar="train.device=auto|cuda",
    help="where to decode (default: the CPU)",
)
@options.checkpoint_option
@click.option(
    "--num",
    type=options.WholeNumber(1),
    default=64,
    help="images to draw, of each class if --classes is given",
)
@out_option
@click.option(
    "--classes",
    metavar="0,1,..|NAME,..|all",
    help="classes of the prior, or names of classes of the data; a .png has a row for each",
)
@click.option(
    "--sampler",
    type=options.Choice(("gmm", "flow")),
    help="draw from what `aae-dist fit-sampler` has fitted, instead of the prior",
)
@options.seed_option
def sample(
    uri: str,
    items: tuple[str, ...],
    checkpoint: str,
    num: int,
    out: str,
    classes: str | None,
    sampler: str | None,
    seed: int,
) -> int:
    """Draw from a run's prior and decode the samples.

    A prior with classes (the modes of a mixture, the pieces of a swiss roll, the class part of a
    product) can be sampled one class at a time. Class k is label k where training has read labels;
    elsewhere the name of a class of the data stands for the class of the prior that holds most
    codes of its samples.
    """
    from aae_dist.config.load import absolute_storage
    from aae_dist.inference.early_checks import check_classes

    if sampler is not None and classes is not None:
        raise ConfigError("--classes are those of the prior; leave them out with --sampler")
    check_classes(absolute_storage(uri), classes)  # torch takes seconds to import
    import torch

    from aae_dist.inference.images import checked_path, classes_of_names, write_images
    from aae_dist.inference.samplers import load_sampler

    path = checked_path(out)
    run = options.open_run(uri, checkpoint, items, reads_data=False)
    generator = torch.Generator().manual_seed(seed)
    if classes is None:
        source = run.prior if sampler is None else load_sampler(run, sampler)
        write_images(path, run.decode(source.sample(num, generator)))
        print(f"{num} images of step {run.step:,} written to {path}")
        return 0
    names = _names(classes, run.classes)
    if names and run.prior.num_classes is not None:
        found = classes_of_names(run, names)
        for name, (number, share) in found.items():
            print(f"{name!r}: class {number} of the prior holds {share:.0%} of its codes")
        chosen: Sequence[int] = [number for number, _ in found.values()]
    else:
        chosen = _chosen(classes, run.prior.num_classes, f"{run.uri} ({run.config.prior.kind})")
    labels = torch.tensor(chosen).repeat_interleave(num)
    write_images(path, run.sample(len(labels), generator, labels), columns=num)
    named = ", ".join(map(str, chosen))
    print(f"{num} images each of classes {named} of step {run.step:,} written to {path}")
    return 0


def _names(classes: str, known: Mapping[int, str]) -> list[str]:
    """Return the names of classes of the data that an argument gives; empty if it gives numbers."""
    if classes == "all" or all(part.strip().isdigit() for part in classes.split(",")):
        return []
    names = [classes] if classes in known.values() else [n.strip() for n in classes.split(",")]
    for name in names:
        if known and name not in known.values():
            listed = ", ".join(f"{each!r:.40}" for each in list(known.values())[:20])
            raise ConfigError(f"--classes: {name!r:.80} is no class of the data; it has {listed}")
    return names if known else []


def _chosen(classes: str, known: int | None, prior: str) -> Sequence[int]:
    if known is None:
        raise ConfigError(f"--classes: the prior of {prior} has none")
    try:
        chosen = range(known) if classes == "all" else list(map(int, classes.split(",")))
    except ValueError:
        chosen = [-1]
    if not all(0 <= label < known for label in chosen):
        raise ConfigError(
            f"--classes {classes}: give numbers from 0 to {known - 1}, say 0,1, or all"
        )
    return chosen


KINDS = ("pairs", "plane", "traverse", "styles", "classes")


@options.verb("decode interpolation paths through the latent space", INTERPOLATE_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@out_option
@click.option("--kind", type=options.Choice(KINDS), default="pairs")
@click.option("--num", type=options.WholeNumber(1), default=8, help="rows of pairs")
@click.option("--steps", type=options.WholeNumber(2), default=10, help="images per row")
@click.option(
    "--path",
    type=options.Choice(("auto", "linear", "spherical")),
    default="auto",
    help="auto: spherical for a prior on a sphere and a Gaussian above 2 dimensions, whose mass a "
    "straight line would leave; else linear",
)
@click.option(
    "--from",
    "source",
    type=options.Choice(("data", "prior")),
    default="data",
    help="start and end at codes of data samples or at samples of the prior",
)
@options.data_option
@options.seed_option
def interpolate(
    uri: str,
    items: tuple[str, ...],
    checkpoint: str,
    out: str,
    data: tuple[str, ...],
    **chosen: Any,
) -> int:
    """Decode codes along paths through the latent space.

    pairs     from one code to another, one row per pair
    plane     a patch between four codes; of a 2-D latent space, the whole range of the prior
    traverse  one row per dimension, which moves over the prior's range; the others stay. A .png
              names the dimension of each row and the value of each image
    styles    one row per class, one column per style; for codes of class and style
    classes   one row per class, from it to the next one, all of one style
    """
    from aae_dist.inference import images

    patterns, overrides = options.data_and_overrides([*data, *items])
    wanted = images.InterpolationOptions(**chosen, data=tuple(patterns))
    file = images.checked_path(out)
    run = options.open_run(uri, checkpoint, overrides)
    codes = images.codes_of(run, wanted)
    rows, columns, _ = codes.shape
    decoded = run.decode(codes.flatten(0, 1))
    if wanted.kind == "traverse" and file.suffix.lower() == ".png":
        caption = f"{run.config.run.name}, step {run.step:,}: traversal"
        images.write_traversal(file, decoded, codes, caption)
    else:
        images.write_images(file, decoded, columns)
    path = images.fitting_path(run, wanted.path)
    print(
        f"{rows} rows of {columns} images ({wanted.kind}, {path}) of step {run.step:,} written to "
        f"{file}"
    )
    return 0


@options.verb("show or write what a run makes of images", RECONSTRUCT_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@click.option("--out", required=True, metavar="FILE or FOLDER", help="where to write")
@click.option("--num", type=options.WholeNumber(1), default=32, help="images in a file")
def reconstruct(uri: str, items: tuple[str, ...], checkpoint: str, out: str, num: int) -> int:
    """Show what a run makes of images, or write it.

    A .png has each original above its reconstruction; .npy, .npz and .safetensors hold the
    reconstructions, float32 [N, C, H, W] in [0, 1]. Any other --out is a folder: all samples are
    written there as WebDataset shards with the keys and labels of the originals.
    """
    from aae_dist.inference.images import checked_path, is_file, write_file, write_images

    if not is_file(out):
        return write_dataset(uri, items, out, "tar", checkpoint)
    from aae_dist.utils.arrays import figure_to_png, stratified

    path = checked_path(out)
    patterns, overrides = options.data_and_overrides(items)
    run = options.open_run(uri, checkpoint, overrides)
    samples = run.open(patterns)
    originals, labels = samples.read(stratified(num, len(samples)))
    samples.log_unused()
    images = run.reconstruct(originals, labels)
    if path.suffix.lower() == ".png":
        # Imported here: matplotlib takes seconds.
        from aae_dist.evaluation.pictures import reconstructions

        caption = f"{run.config.run.name}, step {run.step:,}"
        picture = figure_to_png(reconstructions(originals, images.float().cpu(), caption))
        write_file(path, lambda: path.write_bytes(picture))
    else:
        write_images(path, images)
    print(f"{len(originals)} reconstructions of step {run.step:,} written to {path}")
    return 0


ENCODE_EXAMPLES = """\
examples:
  aae-dist encode runs/quickstart builtin://digits/train --out codes
  aae-dist encode s3://bucket/runs/faces 's3://bucket/faces/*.tar' --out s3://bucket/codes \\
    launch.workers=8 launch.cpus_per_worker=4

With launch.workers=N the shards are spread over N Ray workers, of the cluster of RAY_ADDRESS or
of one that starts on this machine; without it, this process (or torchrun's ranks) does it all.
"""
ALONE = "launch.kind=local"  # unless workers are asked for, however the run was trained


@options.verb("write the latent codes of a whole data set", ENCODE_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@options.folder_option
@click.option(
    "--format",
    type=options.Choice(("parquet", "npy")),
    default="parquet",
    help="parquet (key, label, class, code; of a class part predicted, probabilities) or npy "
    "(NAME.codes.npy, .labels.npy, .keys.npy)",
)
def encode(uri: str, items: tuple[str, ...], checkpoint: str, out: str, format: str) -> int:
    """Write the latent codes of a data set.

    For every sample the code (the mean of q(z|x)), the key, the label and the name of its class
    where labels have names. Each input shard becomes one output file, which appears whole; the same
    command, given again, writes only the missing ones. The bytes depend on the checkpoint and the
    data alone, not on how many workers write them. _about.json tells what the folder holds and
    whether it is complete.
    """
    return write_dataset(uri, items, out, format, checkpoint)


def write_dataset(
    uri: str,
    items: Sequence[str],
    out: str,
    format: str,
    checkpoint: str = "newest",
    scoring: Callable[["TrainedRun", "DatasetJob"], "DatasetJob"] | None = None,
) -> int:
    """Write what a run makes of every sample of a data set to a folder, in shards.

    The folder, local or in a bucket, is absent, empty, or begun by the same command. Formats are
    parquet and npy for codes, tar for reconstructions, and those of scores, for which `scoring`
    adds to the job what scores samples.
    """
    import torch

    from aae_dist import load_run
    from aae_dist.config.load import absolute_storage, with_overrides
    from aae_dist.data import open_manifest
    from aae_dist.distributed.world import from_environment
    from aae_dist.inference.dataset_job import DatasetJob, check_format, output_fingerprint
    from aae_dist.launch.local import write_shards

    check_format(format)
    data, overrides = options.data_and_overrides(items)
    run = load_run(absolute_storage(uri), checkpoint=checkpoint)
    asked = any(item.startswith("launch.workers") for item in overrides)
    config = with_overrides(run.config, ["launch.kind=ray" if asked else ALONE, *overrides])
    manifest = open_manifest(run.shards(data))
    job = DatasetJob(
        run=run.uri,
        step=run.step,
        data=config.data.model_copy(update={"decoded": "none"}).model_dump_json(),
        threads=config.launch.threads,
        device=config.train.device,
        out=absolute_storage(out),
        format=format,
        classes=tuple(manifest.names.items()),
    )
    if scoring is not None:
        torch.set_num_threads(job.threads)
        job = scoring(run, job)
    before = write_shards(config, job, manifest, output_fingerprint(run, manifest, job))
    if from_environment("cpu").is_main:
        _print_written(job, manifest, before)
    return 0


def _print_written(job: "DatasetJob", manifest: "Manifest", before: int) -> None:
    count = len(manifest.shards)
    if before == count:
        print(f"{job.out} was complete already: nothing was written.")
    elif before:
        print(f"{before} of {count} shards were there already.")
    total = f"{manifest.num_samples:,} samples"
    print(f"{total} of step {job.step:,} in {count} shards: {job.out}")
