"""A trained run applied to a whole data set: each input shard becomes one output shard.

What is written is a function of the run's weights and the data alone: chunks have a fixed size
and no chunk spans two shards, so one process, gloo ranks and Ray workers write equal bytes.
"""

import functools
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aae_dist.config.sections.data import Data
from aae_dist.data import Dataset, Manifest, Shard
from aae_dist.data.format.manifest import FILE_NAME as MANIFEST
from aae_dist.data.format.manifest import dump
from aae_dist.distributed.world import from_environment
from aae_dist.errors import ConfigError
from aae_dist.inference.outputs import FORMATS, LAST_FILES, ShardOutput, TarOutput
from aae_dist.inference.trained_run import TrainedRun, load_run
from aae_dist.storage import Storage, open_storage

CHUNK = 256
"""Samples of one forward pass; fixed, since a product's rounding may depend on its shape."""
ABOUT = "_about.json"
"""What the folder holds; readers of parquet folders pass over names that begin with '_'."""
VERSION = 1
READING = ("image_keys", "label_key", "image_size", "channels", "resize", "crop_size")
"""Keys of `data` that decide what is read of a sample."""

UNREADABLE = {"weights": "weights", "id": "shards"}
"""Keys of a plan whose values are hashes, and what differs when they do."""


@dataclass(frozen=True)
class Job:
    """What a worker must know to write any shard of one output."""

    run: str
    step: int
    data: str
    """The `data` section, as JSON."""
    threads: int
    device: str
    out: str
    format: str


def plan_of(run: TrainedRun, manifest: Manifest, job: Job) -> dict[str, Any]:
    """Return what decides the output's bytes: equal plans mean equal files."""
    settings = json.loads(job.data)
    return {
        "version": VERSION,
        "format": job.format,
        "run": run.uri,
        "step": run.step,
        "weights": run.fingerprint(),
        "latent_dim": run.config.model.latent_dim,
        "data": {
            "id": manifest.id,
            "samples": manifest.num_samples,
            "settings": {key: settings[key] for key in READING if key in settings},
        },
    }


def begin(out: Storage, plan: dict[str, Any]) -> bool:
    """Claim the output folder for `plan`; return whether it is complete already.

    Raises:
        ConfigError: the folder holds something else, or the output of another plan.
    """
    text = json.dumps({**plan, "complete": False}, indent=1).encode()
    try:
        found = json.loads(out.read(ABOUT))
    except ValueError:
        found = {}
    except FileNotFoundError:
        if out.list():
            raise ConfigError(f"{out.uri} is not empty; give another --out, or empty it") from None
        out.write(ABOUT, text)
        return False
    differing = list(_differences(found, plan))
    if differing:
        raise ConfigError(
            f"{out.uri} holds the output of another command (other {', '.join(differing)}); "
            "give another --out, or empty it"
        )
    return bool(found.get("complete"))


def _differences(found: Any, plan: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of `plan` that the folder's document has otherwise, with both values."""
    for key, value in plan.items():
        other = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            yield from _differences(other, value)
        elif key in UNREADABLE and other != value:
            yield UNREADABLE[key]
        elif other != value:
            yield f"{key}: {json.dumps(other)} there, {json.dumps(value)} asked for"


def give_up(out: Storage) -> None:
    """Take back the claim of `begin` on a folder in which no shard was written.

    So the advice of the error that ended the command can be followed with the same --out. A claim
    that lies there all the same may be that of a command which is at its first shard.
    """
    if {entry.key for entry in out.list()} <= {ABOUT}:
        out.delete(ABOUT)


def missing(out: Storage, manifest: Manifest, job: Job) -> list[int]:
    """Return the numbers of the shards that are not written yet."""
    present = {entry.key for entry in out.list()}
    numbers = range(len(manifest.shards))
    return [n for n in numbers if LAST_FILES[job.format].format(name_of(n)) not in present]


def complete(out: Storage, plan: dict[str, Any], manifest: Manifest) -> None:
    """Write down what the folder holds; to be called when every shard is there."""
    template = LAST_FILES[plan["format"]]
    files = [
        {"file": template.format(name_of(n)), "samples": shard.samples, "source": shard.name}
        for n, shard in enumerate(manifest.shards)
    ]
    if plan["format"] == "tar":
        out.write(MANIFEST, dump(_output_shards(out, files)))
    about = {**plan, "complete": True, "shards": files}
    out.write(ABOUT, json.dumps(about, indent=1).encode())


def _output_shards(out: Storage, files: list[dict[str, Any]]) -> list[Shard]:
    """Return tar files as the shards of a data set, which training can read."""
    sizes = {entry.key: entry.size for entry in out.list()}
    return [Shard(out.uri, f["file"], f["samples"], sizes[f["file"]]) for f in files]


def name_of(number: int) -> str:
    """Return the name of an output shard without its ending."""
    return f"{number:06d}"


def write_shard(job: Job, number: int, shard: Shard) -> int:
    """Write the output of one input shard and return its samples.

    Its files appear whole, and that which says 'done' last, so a killed worker leaves no half.

    Raises:
        DataError: the shard is missing or damaged; nothing is written.
    """
    run = _opened(job)
    out = open_storage(job.out)
    with tempfile.TemporaryDirectory(prefix="aae_dist-shard-") as folder:
        width = run.config.model.latent_dim
        output = FORMATS[job.format](Path(folder), name_of(number), shard.samples, width)
        try:
            if shard.samples:
                _fill(output, job, shard, run)
        finally:
            paths = output.close()
        for path in paths:
            out.upload(path.name, path)
    return shard.samples


def _fill(output: ShardOutput, job: Job, shard: Shard, run: TrainedRun) -> None:
    data = Dataset(Manifest((shard,)), Data.model_validate_json(job.data), run.image_shape)
    if isinstance(output, TarOutput):
        output.as_arrays = data.dtype.is_floating_point or run.image_shape[0] not in (1, 3)
    for start, images, labels in _chunks(data):
        keys = data.keys(range(start, start + len(labels)))
        rows = run.reconstruct(images) if job.format == "tar" else run.encode(images)
        output.add(keys, labels.numpy(), rows.float().cpu().numpy())


@functools.lru_cache(maxsize=1)
def _opened(job: Job) -> TrainedRun:
    """Return the run, loaded once a process."""
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(job.threads)
    return load_run(job.run, from_environment(job.device).device, job.step)


def _chunks(data: Dataset) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first sample, images, labels); a thread reads one chunk ahead."""
    starts = range(0, len(data), CHUNK)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_read, data, 0)
        for start in starts:
            current, coming = coming, pool.submit(_read, data, start + CHUNK)
            yield start, *current.result()


def _read(data: Dataset, start: int) -> tuple[Tensor, Tensor]:
    return data.read(range(start, min(start + CHUNK, len(data))))
