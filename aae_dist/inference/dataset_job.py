"""A trained run applied to a whole data set: each input shard becomes one output shard.

The output is a function of the run's weights and the data alone: chunks have a fixed size and no
chunk spans two shards, so one process, gloo ranks and Ray workers write the same bytes.
"""

import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
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
from aae_dist.inference.outputs import LAST_FILES, Labels, OutputSpec, Rows, open_output
from aae_dist.inference.trained_run import TrainedRun, load_run
from aae_dist.storage import Storage, open_storage

CHUNK = 256
"""Samples of one forward pass; fixed, since the rounding of a product may depend on its shape."""
METADATA_FILE = "_about.json"
"""Describes the folder; readers of parquet folders skip names that begin with '_'."""
VERSION = 1
INPUT_KEYS = ("image_keys", "label_key", "image_size", "channels", "resize", "crop_size")
"""Keys of `data` that determine the input of a sample."""
HASH_KEYS = {"weights": "weights", "id": "shards"}
"""Keys of a fingerprint with hashes as values, by the name to show when they differ."""


@dataclass(frozen=True)
class DatasetJob:
    """Everything that a worker needs to write any shard of one output."""

    run: str
    step: int
    data: str
    """The `data` section, as JSON."""
    threads: int
    device: str
    out: str
    format: str


def output_fingerprint(run: TrainedRun, manifest: Manifest, job: DatasetJob) -> dict[str, Any]:
    """Return the output fingerprint: equal fingerprints mean equal files."""
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
            "settings": {key: settings[key] for key in INPUT_KEYS if key in settings},
        },
    }


def claim_output(out: Storage, fingerprint: dict[str, Any]) -> bool:
    """Claim the output folder for a job; return whether it is complete already.

    Raises:
        ConfigError: the folder holds other files, or the output of another job.
    """
    text = json.dumps({**fingerprint, "complete": False}, indent=1).encode()
    try:
        found = json.loads(out.read(METADATA_FILE))
    except ValueError:
        found = {}
    except FileNotFoundError:
        if out.list():
            raise ConfigError(f"{out.uri} is not empty; give another --out, or empty it") from None
        out.write(METADATA_FILE, text)
        return False
    differing = list(_differences(found, fingerprint))
    if differing:
        raise ConfigError(
            f"{out.uri} holds the output of another command (other {', '.join(differing)}); "
            "give another --out, or empty it"
        )
    return bool(found.get("complete"))


def _differences(found: Any, fingerprint: dict[str, Any]) -> Iterator[str]:
    """Yield the keys whose values differ in the folder, with both values."""
    for key, value in fingerprint.items():
        other = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            yield from _differences(other, value)
        elif key in HASH_KEYS and other != value:
            yield HASH_KEYS[key]
        elif other != value:
            yield f"{key}: {json.dumps(other)} there, {json.dumps(value)} asked for"


def release_claim(out: Storage) -> None:
    """Release the claim on a folder in which no shard was written.

    So the advice of the error that ended the command can be followed with the same --out. An older
    claim on an empty folder stays: another command may be at its first shard.
    """
    if {entry.key for entry in out.list()} <= {METADATA_FILE}:
        out.delete(METADATA_FILE)


def missing(out: Storage, manifest: Manifest, job: DatasetJob) -> list[int]:
    """Return the numbers of the shards that are not written yet."""
    present = {entry.key for entry in out.list()}
    numbers = range(len(manifest.shards))
    return [n for n in numbers if LAST_FILES[job.format].format(shard_name(n)) not in present]


def complete(out: Storage, fingerprint: dict[str, Any], manifest: Manifest) -> None:
    """Mark the output as complete and list its files; call it once every shard is written."""
    template = LAST_FILES[fingerprint["format"]]
    files = [
        {"file": template.format(shard_name(n)), "samples": shard.samples, "source": shard.name}
        for n, shard in enumerate(manifest.shards)
    ]
    if fingerprint["format"] == "tar":
        out.write(MANIFEST, dump(_output_shards(out, files)))
    about = {**fingerprint, "complete": True, "shards": files}
    out.write(METADATA_FILE, json.dumps(about, indent=1).encode())


def _output_shards(out: Storage, files: list[dict[str, Any]]) -> list[Shard]:
    """Return tar files as the shards of a data set to train on."""
    sizes = {entry.key: entry.size for entry in out.list()}
    return [Shard(out.uri, f["file"], f["samples"], sizes[f["file"]]) for f in files]


def shard_name(number: int) -> str:
    """Return the name of an output shard without suffix."""
    return f"{number:06d}"


def write_shard(job: DatasetJob, number: int, shard: Shard) -> int:
    """Write the output of one input shard and return its number of samples.

    Files appear complete, and the one that marks the shard as complete appears last, so a killed
    worker leaves no half-written shard.

    Raises:
        DataError: the shard is missing or damaged; nothing is written.
    """
    run = _load_once(job)
    data = _open_shard(job, shard, run) if shard.samples else None
    as_arrays = data is not None and _needs_arrays(data, run)
    width = run.config.model.latent_dim
    spec = OutputSpec(shard_name(number), shard.samples, width, as_arrays)
    out = open_storage(job.out)
    with tempfile.TemporaryDirectory(prefix="aae_dist-shard-") as folder:
        with open_output(job.format, Path(folder), spec) as output:
            for keys, labels, rows in _rows(job, data, run) if data is not None else ():
                output.add(keys, labels, rows)
        for path in output.paths:
            out.upload(path.name, path)
    return shard.samples


def _open_shard(job: DatasetJob, shard: Shard, run: TrainedRun) -> Dataset:
    return Dataset(Manifest((shard,)), Data.model_validate_json(job.data), run.image_shape)


def _needs_arrays(data: Dataset, run: TrainedRun) -> bool:
    """Return whether images are floats, or have a number of channels that PNG does not support."""
    return data.dtype.is_floating_point or run.image_shape[0] not in (1, 3)


@functools.lru_cache(maxsize=1)
def _load_once(job: DatasetJob) -> TrainedRun:
    """Return the run, loaded once per process."""
    # As many as in training: rounding of matrix products depends on the number of threads.
    torch.set_num_threads(job.threads)
    return load_run(job.run, from_environment(job.device).device, job.step)


def _rows(
    job: DatasetJob, data: Dataset, run: TrainedRun
) -> Iterator[tuple[Sequence[str], Labels, Rows]]:
    """Yield keys, labels and output rows of each chunk."""
    for start, images, labels in _chunks(data):
        keys = data.keys(range(start, start + len(labels)))
        rows = run.reconstruct(images) if job.format == "tar" else run.encode(images)
        yield keys, labels.numpy(), rows.float().cpu().numpy()


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
