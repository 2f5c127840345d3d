"""Images of a trained run: sample, interpolate, reconstruct."""

from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import (
    Choice,
    Item,
    RawHelp,
    WholeNumber,
    data_and_overrides,
    data_argument,
    open_run,
    run_argument,
    seed_option,
    step_option,
)
from aae_dist.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from aae_dist.inference.trained_run import TrainedRun

SAMPLE_EXAMPLES = """\
examples:
  aae-dist sample runs/quickstart --num 64 --out samples.png
  aae-dist sample runs/quickstart --classes all --num 10 --out classes.png
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


@click.command(
    cls=RawHelp,
    short_help="decode samples of a run's prior into images",
    epilog=SAMPLE_EXAMPLES,
)
@run_argument
@click.argument(
    "items",
    nargs=-1,
    type=Item(),
    metavar="train.device=auto|cuda",
    help="where to decode (default: the CPU)",
)
@step_option
@click.option(
    "--num",
    type=WholeNumber(1),
    default=64,
    show_default=True,
    help="images to draw, of each class if --classes is given",
)
@out_option
@click.option(
    "--classes", metavar="0,1,..|all", help="classes of the prior; a .png has a row for each"
)
@seed_option
def sample(
    uri: str,
    items: tuple[str, ...],
    step: int | None,
    num: int,
    out: str,
    classes: str | None,
    seed: int,
) -> int:
    """Draw from a run's prior and decode the samples.

    A prior with classes (the modes of a mixture, the pieces of a swiss roll) can be sampled one
    class at a time.
    """
    import torch

    from aae_dist.inference.image_files import checked_path, write_images

    path = checked_path(out)
    run = open_run(uri, step, items, reads_data=False)
    generator = torch.Generator().manual_seed(seed)
    if classes is None:
        write_images(path, run.sample(num, generator))
        print(f"{num} images of step {run.step:,} written to {path}")
        return 0
    labels = _labels(run, classes, num)
    write_images(path, run.sample(len(labels), generator, labels), columns=num)
    named = ", ".join(map(str, labels[::num].tolist()))
    print(f"{num} images each of classes {named} of step {run.step:,} written to {path}")
    return 0


def _labels(run: "TrainedRun", classes: str, num: int) -> "Tensor":
    import torch

    known = run.prior.num_classes
    if known is None:
        raise ConfigError(f"--classes: the prior of {run.uri} ({run.config.prior.kind}) has none")
    try:
        chosen = range(known) if classes == "all" else [int(text) for text in classes.split(",")]
    except ValueError:
        chosen = [-1]
    if not all(0 <= label < known for label in chosen):
        raise ConfigError(
            f"--classes {classes}: give numbers from 0 to {known - 1}, say 0,1, or all"
        )
    return torch.tensor(chosen, dtype=torch.int64).repeat_interleave(num)


@click.command(
    cls=RawHelp,
    short_help="decode interpolation paths through the latent space",
    epilog=INTERPOLATE_EXAMPLES,
)
@run_argument
@data_argument
@step_option
@out_option
@click.option(
    "--kind", type=Choice(("pairs", "plane", "traverse")), default="pairs", show_default=True
)
@click.option("--num", type=WholeNumber(1), default=8, show_default=True, help="rows of pairs")
@click.option("--steps", type=WholeNumber(2), default=10, show_default=True, help="images per row")
@click.option(
    "--path",
    type=Choice(("auto", "linear", "spherical")),
    default="auto",
    show_default=True,
    help="auto: spherical for a prior on a sphere and a Gaussian above 2 dimensions, whose mass a "
    "straight line would leave; else linear",
)
@click.option(
    "--from",
    "source",
    type=Choice(("data", "prior")),
    default="data",
    show_default=True,
    help="start and end at codes of data samples or at samples of the prior",
)
@click.option("--data", multiple=True, type=Item(), metavar="PATTERN", help="the same as DATA")
@seed_option
def interpolate(
    uri: str,
    items: tuple[str, ...],
    step: int | None,
    out: str,
    kind: str,
    num: int,
    steps: int,
    path: str,
    source: str,
    data: tuple[str, ...],
    seed: int,
) -> int:
    """Decode codes along paths through the latent space.

    pairs     from one code to another, one row per pair
    plane     a patch between four codes; of a 2-D latent space, the whole range of the prior
    traverse  one row per dimension, which moves over the prior's range; the others stay
    """
    from aae_dist.inference.image_files import checked_path, write_images
    from aae_dist.inference.interpolation import InterpolationOptions, codes_of, fitting_path

    patterns, overrides = data_and_overrides([*data, *items])
    options = InterpolationOptions(kind, num, steps, path, source, tuple(patterns), seed)
    file = checked_path(out)
    run = open_run(uri, step, overrides)
    codes = codes_of(run, options)
    write_images(file, run.decode(codes.flatten(0, 1)), columns=codes.shape[1])
    print(
        f"{codes.shape[0]} rows of {codes.shape[1]} images ({kind}, {fitting_path(run, path)}) "
        f"of step {run.step:,} written to {file}"
    )
    return 0


@click.command(
    cls=RawHelp,
    short_help="show or write what a run makes of images",
    epilog=RECONSTRUCT_EXAMPLES,
)
@run_argument
@data_argument
@step_option
@click.option("--out", required=True, metavar="FILE or FOLDER", help="where to write")
@click.option("--num", type=WholeNumber(1), default=32, show_default=True, help="images in a file")
def reconstruct(uri: str, items: tuple[str, ...], step: int | None, out: str, num: int) -> int:
    """Show what a run makes of images, or write it.

    A .png has each original above its reconstruction; .npy, .npz and .safetensors hold the
    reconstructions, float32 [N, C, H, W] in [0, 1]. Any other --out is a folder: all samples are
    written there as WebDataset shards with the keys and labels of the originals.
    """
    from aae_dist.inference.image_files import checked_path, is_file, write_file, write_images

    if not is_file(out):
        from aae_dist.cli.encode import write_dataset

        return write_dataset(uri, items, out, "tar", step)
    from aae_dist.utils.arrays import evenly_spaced

    path = checked_path(out)
    patterns, overrides = data_and_overrides(items)
    run = open_run(uri, step, overrides)
    samples = run.open(patterns)
    originals, _ = samples.read(evenly_spaced(num, len(samples)))
    images = run.reconstruct(originals)
    if path.suffix.lower() == ".png":
        # Imported here: matplotlib takes seconds.
        from aae_dist.evaluation.pictures.images import reconstructions
        from aae_dist.utils.arrays import figure_to_png

        caption = f"{run.config.run.name}, step {run.step:,}"
        picture = figure_to_png(reconstructions(originals, images.float().cpu(), caption))
        write_file(path, lambda: path.write_bytes(picture))
    else:
        write_images(path, images)
    print(f"{len(originals)} reconstructions of step {run.step:,} written to {path}")
    return 0
