"""`aae-dist encode`, and `reconstruct` with a folder: a run applied to a whole data set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aae_dist.cli.options import (
    Choice,
    RawHelp,
    data_and_overrides,
    data_argument,
    run_argument,
    step_option,
)

if TYPE_CHECKING:
    from aae_dist.config import RunConfig
    from aae_dist.inference.dataset_job import DatasetJob
    from aae_dist.inference.trained_run import TrainedRun

EXAMPLES = """\
examples:
  aae-dist encode runs/quickstart builtin://digits/train --out codes
  aae-dist encode s3://bucket/runs/faces 's3://bucket/faces/*.tar' --out s3://bucket/codes \\
    launch.workers=8 launch.cpus_per_worker=4

With launch.workers=N the shards are spread over N Ray workers, of the cluster of RAY_ADDRESS or
of one that starts on this machine; without it, this process (or torchrun's ranks) does it all.
"""
ALONE = "launch.kind=local"
"""Unless workers are asked for, a verb stays in this process, however the run was trained."""


@click.command(
    cls=RawHelp, short_help="write the latent codes of a whole data set", epilog=EXAMPLES
)
@run_argument
@data_argument
@step_option
@click.option(
    "--out",
    required=True,
    metavar="FOLDER",
    help="where to: a path, s3://, gs:// or az://",
)
@click.option(
    "--format",
    type=Choice(("parquet", "npy")),
    default="parquet",
    show_default=True,
    help="parquet (key, label, code) or npy (NAME.codes.npy, .labels.npy, .keys.npy)",
)
def encode(uri: str, items: tuple[str, ...], step: int | None, out: str, format: str) -> int:
    """Write the latent codes of a data set.

    For every sample the code (the mean of q(z|x)), the key and the label. Each input shard becomes
    one output file, which appears whole; the same command, given again, writes only the missing
    ones. The bytes depend on the checkpoint and the data alone, not on how many workers write them.
    _about.json tells what the folder holds and whether it is complete.
    """
    return write_dataset(uri, items, out, format, step)


def write_dataset(
    uri: str, items: Sequence[str], out: str, format: str, step: int | None = None
) -> int:
    """Write what a run makes of every sample of a data set to a folder, in shards.

    Args:
        uri: the run's folder.
        items: patterns of shards, by default the run's validation shards; and overrides of
            `data.*`, `launch.*` and `train.device`.
        out: folder to write, local or in a bucket; absent, empty, or begun by the same command.
        format: parquet or npy for codes, tar for reconstructions.
        step: the checkpoint's step; by default the newest.

    Raises:
        ConfigError: an override or the output folder is wrong.
        CheckpointError: the run holds no checkpoint that verifies.
        DataError: a shard is missing or damaged.
        Interrupted: stopped from the keyboard; the same command resumes.
    """
    from aae_dist import load_run
    from aae_dist.config.paths import absolute_storage
    from aae_dist.data import open_manifest
    from aae_dist.distributed.world import from_environment
    from aae_dist.inference.dataset_job import DatasetJob, output_fingerprint
    from aae_dist.inference.outputs import check_format
    from aae_dist.launch.shards import write_shards

    check_format(format)
    data, overrides = data_and_overrides(items)
    run = load_run(absolute_storage(uri), step=step)
    config = _configure(run, overrides)
    manifest = open_manifest(run.shards(data))
    job = DatasetJob(
        run=run.uri,
        step=run.step,
        data=config.data.model_copy(update={"decoded": "none"}).model_dump_json(),
        threads=config.launch.cpus_per_worker,
        device=config.train.device,
        out=absolute_storage(out),
        format=format,
    )
    before = write_shards(config, job, manifest, output_fingerprint(run, manifest, job))
    if from_environment("cpu").is_main:
        _report(job, len(manifest.shards), manifest.num_samples, before)
    return 0


def _configure(run: "TrainedRun", overrides: Sequence[str]) -> "RunConfig":
    from aae_dist.config.inference import with_overrides

    asked = [item for item in overrides if item.startswith("launch.workers")]
    own = "launch.kind=ray" if asked else ALONE
    return with_overrides(run.config, [own, *overrides])


def _report(job: "DatasetJob", num_shards: int, num_samples: int, before: int) -> None:
    if before == num_shards:
        print(f"{job.out} was complete already: nothing was written.")
    elif before:
        print(f"{before} of {num_shards} shards were there already.")
    print(f"{num_samples:,} samples of step {job.step:,} in {num_shards} shards: {job.out}")
