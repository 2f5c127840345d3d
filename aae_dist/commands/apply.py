"""`aae-dist encode` and `aae-dist reconstruct --out FOLDER`: a run applied to a whole data set."""

from collections.abc import Sequence

from aae_dist import load_run
from aae_dist.config import RunConfig
from aae_dist.config.inference import with_overrides
from aae_dist.config.paths import absolute_storage
from aae_dist.data import open_manifest
from aae_dist.distributed.world import from_environment
from aae_dist.inference.dataset_job import Job, plan_of
from aae_dist.inference.outputs import check_format
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.launch.shards import write_shards

ALONE = ("launch.kind=local",)
"""Without a word on workers a verb stays in this process, however the run was trained."""


def apply(
    uri: str,
    data: Sequence[str],
    out: str,
    format: str,
    overrides: Sequence[str] = (),
    step: int | None = None,
) -> int:
    """Write what the run at `uri` makes of every sample of a data set to a folder, in shards.

    Args:
        uri: the run's folder.
        data: patterns of shards; none means the run's validation shards.
        out: folder to write, local or in a bucket; absent, empty, or begun by the same command.
        format: parquet or npy for codes, tar for reconstructions.
        overrides: of `data.*`, `launch.*` and `train.device`.
        step: the checkpoint's step; by default the newest.

    Raises:
        ConfigError: an override or the output folder is wrong.
        CheckpointError: the run holds no checkpoint that verifies.
        DataError: a shard is missing or damaged.
        Interrupted: stopped from the keyboard; the same command goes on.
    """
    check_format(format)
    run = load_run(absolute_storage(uri), step=step)
    config = _settings(run, overrides)
    manifest = open_manifest(run.shards([absolute_storage(pattern) for pattern in data]))
    job = Job(
        run=run.uri,
        step=run.step,
        data=config.data.model_copy(update={"decoded": "none"}).model_dump_json(),
        threads=config.launch.cpus_per_worker,
        device=config.train.device,
        out=absolute_storage(out),
        format=format,
    )
    before = write_shards(config, job, manifest, plan_of(run, manifest, job))
    if from_environment("cpu").is_main:
        _report(job, len(manifest.shards), manifest.num_samples, before)
    return 0


def _settings(run: TrainedRun, overrides: Sequence[str]) -> RunConfig:
    asked = [item for item in overrides if item.startswith("launch.workers")]
    own = ("launch.kind=ray",) if asked else ALONE
    return with_overrides(run.config, [*own, *overrides])


def _report(job: Job, num_shards: int, num_samples: int, before: int) -> None:
    if before == num_shards:
        print(f"{job.out} was complete already: nothing was written.")
    elif before:
        print(f"{before} of {num_shards} shards were there already.")
    print(f"{num_samples:,} samples of step {job.step:,} in {num_shards} shards: {job.out}")
