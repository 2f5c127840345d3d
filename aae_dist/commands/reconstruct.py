"""`aae-dist reconstruct`: what a trained run makes of the images that it is given."""

from collections.abc import Sequence

from aae_dist.commands.images import checked_path, is_file, write_file, write_images
from aae_dist.commands.trained import open_run
from aae_dist.config.paths import absolute_storage
from aae_dist.spread import spread_evenly


def reconstruct(
    uri: str,
    out: str,
    data: Sequence[str] = (),
    num: int = 32,
    overrides: Sequence[str] = (),
    step: int | None = None,
) -> int:
    """Write reconstructions: of some samples to a file, or of all as shards to a folder.

    Args:
        uri: the run's folder.
        out: a file with a suffix of `commands.images.WRITERS`: a .png shows each original above
            its reconstruction, the others hold the reconstructions alone. Anything else is a
            folder of WebDataset shards, under the keys of the originals.
        data: patterns of shards; none means the run's validation shards.
        num: images in a file, spread evenly over the data.
        overrides: of `data.*` and `train.device`; for a folder also of `launch.*`.
        step: the checkpoint's step; by default the newest.

    Raises:
        ConfigError: `out` cannot be written, an override is wrong, or there is no data.
        CheckpointError: the folder holds no checkpoint that verifies.
        DataError: the data is missing or damaged.
    """
    if not is_file(out):
        from aae_dist.commands.apply import apply

        return apply(uri, data, out, "tar", overrides, step)
    path = checked_path(out)
    run = open_run(uri, step, overrides)
    samples = run.open([absolute_storage(pattern) for pattern in data])
    originals, _ = samples.read(spread_evenly(num, len(samples)))
    images = run.reconstruct(originals)
    if path.suffix.lower() == ".png":
        # Imported here: matplotlib takes seconds.
        from aae_dist.drawing import png
        from aae_dist.evaluation.pictures import reconstructions

        caption = f"{run.config.run.name}, step {run.step:,}"
        picture = png(reconstructions(originals, images.float().cpu(), caption))
        write_file(path, lambda: path.write_bytes(picture))
    else:
        write_images(path, images)
    print(f"{len(originals)} reconstructions of step {run.step:,} written to {path}")
    return 0
