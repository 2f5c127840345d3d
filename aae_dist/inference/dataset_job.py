"""A trained run applied to a whole data set: each input shard becomes one output shard.

The output is a function of the run's weights and the data alone: chunks have a fixed size and no
chunk spans two shards, so one process, gloo ranks and Ray workers write the same bytes. Codes go to
parquet or npy files, images to a WebDataset tar. Rows come in order and in chunks, so no file is
ever held in memory; the bytes hold no times, no host, no chunking that depends on the writer.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, Manifest, Shard
from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.data.format.manifest import CLASSES_FILE, FILE_NAME, dump, dump_classes
from aae_dist.distributed.world import from_environment
from aae_dist.errors import ConfigError
from aae_dist.inference import anomaly, samplers
from aae_dist.inference.trained_run import TrainedRun, load_run
from aae_dist.storage import Storage, documents, open_storage
from aae_dist.utils.arrays import npy_bytes, png_bytes

Rows = np.typing.NDArray[Any]
"""Floats (n, ...): float32 codes or images, or float64 scores."""
Labels = np.typing.NDArray[np.int64]

GROUP_BYTES = 8 << 20  # size of the codes in one parquet row group, which a reader loads at once


@dataclass(frozen=True)
class OutputSpec:
    """Properties of the output of one shard that are known before its first row."""

    name: str  # file name without suffix
    num_rows: int
    width: int  # latent dimension, for codes
    classes: tuple[tuple[int, str], ...] = ()  # label and name of each class
    probabilities: slice | None = None  # columns of the code that are class probabilities
    as_arrays: bool = False  # whether images are stored as float32 arrays instead of PNG
    columns: tuple[str, ...] = ()  # names of scores


class ShardOutput(Protocol):
    """Writes the rows of one shard, in order."""

    paths: list[Path]  # the files; the last one marks the shard as complete

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        """Append rows; a label of -1 means none."""

    def close(self) -> None:
        """Finish the files."""


@contextmanager
def open_output(format: str, folder: Path, spec: OutputSpec) -> Iterator[ShardOutput]:
    """Open the output of one shard in a local folder; its files are complete after the `with`."""
    output = FORMATS[format](folder, spec)
    try:
        yield output
    finally:
        output.close()


class ParquetOutput:
    """`NAME.parquet`: key (string), label (int64 or null), class (its name or null), code.

    A code is a fixed-size list of float32. Of codes with a class part also the most likely class
    (`predicted`, int64) and the `probabilities` of all, which are a part of the code.
    """

    def __init__(self, folder: Path, spec: OutputSpec) -> None:
        import pyarrow.parquet

        self._arrow: Any = pyarrow
        self.paths, self._width = [folder / f"{spec.name}.parquet"], spec.width
        self._classes = dict(spec.classes)
        self._schema = pyarrow.schema(
            [
                pyarrow.field("key", pyarrow.string(), nullable=False),
                pyarrow.field("label", pyarrow.int64()),
                pyarrow.field("class", pyarrow.string()),
                pyarrow.field("code", pyarrow.list_(pyarrow.float32(), spec.width), nullable=False),
                *self._class_fields(spec),
            ]
        )
        self._probabilities = spec.probabilities
        self._writer: Any = pyarrow.parquet.ParquetWriter(
            self.paths[0], self._schema, compression="zstd"
        )
        self._group_rows = max(1, GROUP_BYTES // (4 * spec.width))
        self._keys: list[str] = []
        self._labels: list[Labels] = []
        self._rows: list[Rows] = []

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        self._keys += keys
        self._labels.append(labels)
        self._rows.append(rows)
        if len(self._keys) >= self._group_rows:
            self._write_group()

    def close(self) -> None:
        if self._keys:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        labels, rows = np.concatenate(self._labels), np.concatenate(self._rows)
        columns = [
            self._arrow.array(self._keys, self._arrow.string()),
            self._arrow.array(labels, self._arrow.int64(), mask=labels == NO_LABEL),
            self._arrow.array(map(self._classes.get, labels.tolist()), self._arrow.string()),
            self._arrow.FixedSizeListArray.from_arrays(
                self._arrow.array(rows.reshape(-1)), self._width
            ),
            *self._class_columns(rows),
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self._keys, self._labels, self._rows = [], [], []

    def _class_fields(self, spec: OutputSpec) -> list[Any]:
        if spec.probabilities is None:
            return []
        num = spec.probabilities.stop - spec.probabilities.start
        probabilities = self._arrow.list_(self._arrow.float32(), num)
        return [
            self._arrow.field("predicted", self._arrow.int64(), nullable=False),
            self._arrow.field("probabilities", probabilities, nullable=False),
        ]

    def _class_columns(self, rows: Rows) -> list[Any]:
        if self._probabilities is None:
            return []
        own = np.ascontiguousarray(rows[:, self._probabilities])
        return [
            self._arrow.array(own.argmax(1), self._arrow.int64()),
            self._arrow.FixedSizeListArray.from_arrays(
                self._arrow.array(own.reshape(-1)), own.shape[1]
            ),
        ]


class NpyOutput:
    """`NAME.codes.npy` float32 [n, Z], `NAME.labels.npy` int64 [n], `NAME.keys.npy` text [n]."""

    def __init__(self, folder: Path, spec: OutputSpec) -> None:
        self.paths = [folder / f"{spec.name}.{part}.npy" for part in ("keys", "labels", "codes")]
        self._keys: list[str] = []
        self._labels = np.empty(spec.num_rows, np.int64)
        self._file = self.paths[-1].open("wb")  # written as the rows come, not held in memory
        header = {"descr": "<f4", "fortran_order": False, "shape": (spec.num_rows, spec.width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        start = len(self._keys)
        self._keys += keys
        self._labels[start : start + len(labels)] = labels
        self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())

    def close(self) -> None:
        self._file.close()
        np.save(self.paths[0], np.array(self._keys, dtype=np.str_), allow_pickle=False)
        np.save(self.paths[1], self._labels, allow_pickle=False)


class TarOutput:
    """`NAME.tar`: a WebDataset shard, images in [0, 1] as png or (float32) npy, labels and keys."""

    def __init__(self, folder: Path, spec: OutputSpec) -> None:
        from webdataset import TarWriter

        self.paths, self._as_arrays = [folder / f"{spec.name}.tar"], spec.as_arrays
        self._writer: Any = TarWriter(str(self.paths[0]), mtime=0)

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        for key, label, image in zip(keys, labels.tolist(), rows, strict=True):
            fields: dict[str, str | bytes] = {"__key__": key}
            if self._as_arrays:
                fields["npy"] = npy_bytes(image)
            else:
                fields["png"] = png_bytes(_pixels(image))
            if label != NO_LABEL:
                fields["cls"] = str(label).encode()
            self._writer.write(fields)

    def close(self) -> None:
        self._writer.close()


def _pixels(image: np.typing.NDArray[np.float32]) -> np.typing.NDArray[np.uint8]:
    """Return an image [C, H, W], clipped to [0, 1], as bytes [H, W] or [H, W, 3]."""
    pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


FORMATS: dict[str, Callable[[Path, OutputSpec], ShardOutput]] = {
    "parquet": ParquetOutput,
    "npy": NpyOutput,
    "tar": TarOutput,
    "scores-parquet": lambda folder, spec: anomaly.ScoreParquet(
        folder / f"{spec.name}.parquet", spec.columns, dict(spec.classes)
    ),
    "scores-csv": lambda folder, spec: anomaly.ScoreCsv(folder / f"{spec.name}.csv", spec.columns),
}
LAST_FILES = {
    **{"parquet": "{}.parquet", "npy": "{}.codes.npy", "tar": "{}.tar"},
    **{"scores-parquet": "{}.parquet", "scores-csv": "{}.csv"},
}
"""The file of a shard that is stored last: if it exists, the shard is complete."""


def check_format(name: str) -> None:
    """Raise ConfigError when a package of the format is not installed."""
    if name.endswith("parquet") and find_spec("pyarrow") is None:
        other = "csv" if name.startswith("scores") else "npy"
        raise ConfigError(
            f"--format parquet needs pyarrow: pip install pyarrow, or --format {other}"
        )


_reported: set[str] = set()  # kinds of unused data that this process has warned of, of any shard
CHUNK = 256  # samples of one forward pass; fixed, since rounding may depend on a product's shape
METADATA_FILE = "_about.json"  # describes the folder; parquet readers skip names with '_' first
VERSION = 2  # 1 had no column for the names of classes
INPUT_KEYS = ("image_keys", "label_key", "image_size", "channels", "resize", "crop_size")
"""Keys of `data`, with `layout` where it is given, that determine the input of a sample."""
HASH_KEYS = {
    **{"weights": "weights", "id": "shards", "classes": "names of classes"},
    **{"reference": "validation scores", "sampler": "sampler"},
}
"""Keys of a fingerprint with long values, by the name to show when they differ."""


@dataclass(frozen=True)
class DatasetJob:
    """Everything that a worker needs to write any shard of one output."""

    run: str
    step: int
    data: str  # the `data` section, as JSON
    threads: int
    device: str
    out: str
    format: str
    classes: tuple[tuple[int, str], ...] = ()
    sampler: str | None = None
    """Kind of the fitted sampler whose density scores codes; None for that among
    the validation codes."""
    scores: tuple[str, ...] = ()
    """Scores of samples, for formats of scores."""
    reference: bytes = b""
    """Scores and codes of validation samples, as `Reference.to_bytes` gives them."""


def output_fingerprint(run: TrainedRun, manifest: Manifest, job: DatasetJob) -> dict[str, Any]:
    """Return the output fingerprint: equal fingerprints mean equal files."""
    settings = json.loads(job.data)
    keys = [*INPUT_KEYS, *(["layout"] if settings.get("layout") else [])]
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
            "settings": {key: settings[key] for key in keys if key in settings},
            "classes": [[name, number] for name, number in manifest.classes.items()],
        },
    } | _about_scores(run, job)


def _about_scores(run: TrainedRun, job: DatasetJob) -> dict[str, Any]:
    """Return the part of the fingerprint that decides scores; empty for other outputs."""
    if not job.scores:
        return {}
    about: dict[str, Any] = {"scores": list(job.scores), "reference": anomaly.digest(job.reference)}
    if job.sampler is not None:
        about["sampler"] = anomaly.digest(samplers.read_sampler(run, job.sampler))
    return about


def claim_output(out: Storage, fingerprint: dict[str, Any]) -> bool:
    """Claim the output folder, ConfigError if it is another's; return whether it is complete."""
    text = json.dumps({**fingerprint, "complete": False}, indent=1).encode()
    try:
        found = documents.parse_json(out.read_range(METADATA_FILE, 0, documents.MAX_BYTES))
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
    files: list[dict[str, Any]] = [
        {"file": template.format(shard_name(n)), "samples": shard.samples, "source": shard.name}
        for n, shard in enumerate(manifest.shards)
    ]
    if fingerprint["format"] == "tar":
        # Tar files are the shards of a data set to train on.
        sizes = {entry.key: entry.size for entry in out.list()}
        shards = [Shard(out.uri, f["file"], f["samples"], sizes[f["file"]]) for f in files]
        out.write(FILE_NAME, dump(shards, classes=manifest.classes))
    if fingerprint["format"] == "npy" and manifest.classes:
        out.write(CLASSES_FILE, dump_classes(manifest.classes))
    about = {**fingerprint, "complete": True, "shards": files}
    out.write(METADATA_FILE, json.dumps(about, indent=1).encode())


def shard_name(number: int) -> str:
    """Return the name of an output shard without suffix."""
    return f"{number:06d}"


def write_shard(job: DatasetJob, number: int, shard: Shard) -> int:
    """Write the output of one input shard and return its number of samples.

    Files appear complete, and the one that marks the shard as complete appears last, so a killed
    worker leaves no half-written shard. A missing or damaged shard is a DataError.
    """
    run = _load_once(job)
    data, as_arrays = None, False
    if shard.samples:
        settings = Data.model_validate_json(job.data)
        data = Dataset(Manifest((shard,)), settings, run.image_shape)
        data.unused.reported = _reported
        # PNG supports no floats, and no other numbers of channels.
        shape = run.image_shape
        is_png = data.dtype == torch.uint8 and len(shape) == 3 and shape[0] in (1, 3)
        as_arrays = not is_png
    width = run.config.model.latent_dim
    name = shard_name(number)
    inferred = next((part.columns for part in run.prior.parts if part.is_categorical), None)
    columns = _ranking(job)[1].columns if job.scores else ()
    spec = OutputSpec(name, shard.samples, width, job.classes, inferred, as_arrays, columns)
    out = open_storage(job.out)
    with tempfile.TemporaryDirectory(prefix="aae_dist-shard-") as folder:
        with open_output(job.format, Path(folder), spec) as output:
            for keys, labels, rows in _rows(job, data, run) if data is not None else ():
                output.add(keys, labels, rows)
        if data is not None:
            data.log_unused()
        for path in output.paths:
            out.upload(path.name, path)
    return shard.samples


@functools.lru_cache(maxsize=1)
def _load_once(job: DatasetJob) -> TrainedRun:
    """Return the run, loaded once per process."""
    # As many as in training: rounding of matrix products depends on the number of threads.
    torch.set_num_threads(job.threads)
    return load_run(job.run, from_environment(job.device).device, job.step)


@functools.lru_cache(maxsize=1)
def _ranking(job: DatasetJob) -> tuple[anomaly.Scorer, anomaly.Reference]:
    """Return scorer and reference, loaded once per process."""
    run = _load_once(job)
    reference = anomaly.Reference.from_bytes(job.scores, job.reference)
    sampler = None if job.sampler is None else samplers.load_sampler(run, job.sampler)
    return anomaly.Scorer(run, sampler or anomaly.Neighbours(reference.codes_nZ)), reference


def _rows(
    job: DatasetJob, data: Dataset, run: TrainedRun
) -> Iterator[tuple[Sequence[str], Labels, Rows]]:
    """Yield keys, labels and output rows of each chunk."""
    for start, images, labels in _chunks(data):
        keys = data.keys(range(start, start + len(labels)))
        if job.scores:
            scorer, reference = _ranking(job)
            yield keys, labels.numpy(), reference.rank(scorer(images, labels))
            continue
        rows = (run.reconstruct if job.format == "tar" else run.encode)(images, labels)
        yield keys, labels.numpy(), rows.float().cpu().numpy()


def _chunks(data: Dataset) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (first sample, images, labels); a thread reads one chunk ahead."""
    starts = range(0, len(data), CHUNK)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_read, data, 0)
        for start in starts:
            current, coming = coming, pool.submit(_read, data, start + CHUNK)
            yield start, *current.result()


def _read(data: Dataset, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    return data.read(range(start, min(start + CHUNK, len(data))))
