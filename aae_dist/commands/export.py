"""`aae-dist export`: a run's encoder and decoder as programs of their own."""

import sys

from torch import Tensor

from aae_dist.commands.trained import open_run
from aae_dist.config.paths import absolute_storage
from aae_dist.errors import AaeDistError
from aae_dist.inference.export import TOLERANCE, WRITERS, check_format
from aae_dist.inference.export import export as write_programs
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.storage import open_storage

NUM_CHECKED = 64


def export(uri: str, out: str, format: str = "torch", step: int | None = None) -> int:
    """Write the encoder and the decoder of the run at `uri` to a folder and check them.

    Args:
        uri: the run's folder.
        out: folder to write, local or in a bucket; files of earlier exports are replaced.
        format: torch or onnx.
        step: the checkpoint's step; by default the newest.

    Raises:
        ConfigError: the format's packages are not installed.
        CheckpointError: the folder holds no checkpoint that verifies.
        ExportError: a program gives other numbers than the run.
    """
    check_format(format)
    run = open_run(uri, step)
    target = open_storage(absolute_storage(out))
    print(f"exporting step {run.step:,} of {uri} ...", file=sys.stderr, flush=True)
    differences = write_programs(run, target, format, _images(run))
    suffix = WRITERS[format][1]
    for name, difference in differences.items():
        print(
            f"{target.uri}/{name}.{suffix}: equal to the run within {difference:.1e} "
            f"(at most {TOLERANCE:g} is let pass)"
        )
    return 0


def _images(run: TrainedRun) -> Tensor | None:
    """Return validation images to check with, None where they cannot be had."""
    try:
        data = run.open()
        return data.read(range(min(NUM_CHECKED, len(data))))[0]
    except AaeDistError as error:
        print(f"note: checked with noise, not with validation data: {error}", file=sys.stderr)
        return None
