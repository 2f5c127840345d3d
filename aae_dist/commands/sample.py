"""`aae-dist sample`: images decoded from a trained run's prior."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aae_dist.commands.images import checked_path, write_images
from aae_dist.commands.trained import open_run
from aae_dist.errors import ConfigError
from aae_dist.inference.trained_run import TrainedRun


def sample(
    uri: str,
    num: int,
    out: str,
    seed: int = 0,
    classes: str | None = None,
    step: int | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Write images, decoded from samples of the prior of the run at `uri`, to a file.

    Args:
        uri: the run's folder.
        num: images to draw; of each class, when classes are given.
        out: local file; its suffix says what is written (see `commands.images.WRITERS`).
        seed: the same seed draws the same samples of the prior.
        classes: comma-separated classes of the prior, or "all"; a .png has a row for each.
        step: the checkpoint's step; by default the newest.
        overrides: of `train.device`.

    Raises:
        ConfigError: the suffix of `out` is not one that we write, it cannot be written, the prior
            has no such classes, or an override is wrong.
        CheckpointError: the folder holds no checkpoint that verifies.
    """
    path = checked_path(out)
    run = open_run(uri, step, overrides, reads_data=False)
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


def _labels(run: TrainedRun, classes: str, num: int) -> Tensor:
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
