"""Output files of one input shard: codes as parquet or npy, images as a WebDataset tar.

Rows come in order and in chunks, so no file is ever held in memory. The bytes are a function of the
rows alone: no times, no host, no chunking that depends on the writer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.errors import ConfigError
from aae_dist.utils.arrays import npy_bytes, png_bytes

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]

GROUP_BYTES = 8 << 20
"""Size of the codes in one parquet row group, which a reader loads at once."""


@dataclass(frozen=True)
class OutputSpec:
    """Properties of the output of one shard that are known before its first row."""

    name: str
    """File name without suffix."""
    num_rows: int
    width: int
    """Latent dimension, for codes."""
    as_arrays: bool = False
    """Whether images are stored as float32 arrays instead of PNG."""


class ShardOutput(Protocol):
    """Writes the rows of one shard, in order."""

    paths: list[Path]
    """The files; the last one marks the shard as complete."""

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
    """`NAME.parquet`: key (string), label (int64 or null), code (fixed-size list of float32)."""

    def __init__(self, folder: Path, spec: OutputSpec) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow: Any = pyarrow
        self.paths, self._width = [folder / f"{spec.name}.parquet"], spec.width
        self._schema = pyarrow.schema(
            [
                pyarrow.field("key", pyarrow.string(), nullable=False),
                pyarrow.field("label", pyarrow.int64()),
                pyarrow.field("code", pyarrow.list_(pyarrow.float32(), spec.width), nullable=False),
            ]
        )
        self._writer: Any = parquet.ParquetWriter(self.paths[0], self._schema, compression="zstd")
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
            self._arrow.FixedSizeListArray.from_arrays(
                self._arrow.array(rows.reshape(-1)), self._width
            ),
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self._keys, self._labels, self._rows = [], [], []


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
    """`NAME.tar`: a WebDataset shard of images in [0, 1] with their labels and the input's keys.

    Images are in the field png, or as float32 arrays in the field npy.
    """

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


def _pixels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image [C, H, W], clipped to [0, 1], as bytes [H, W] or [H, W, 3]."""
    pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


FORMATS: dict[str, Callable[[Path, OutputSpec], ShardOutput]] = {
    "parquet": ParquetOutput,
    "npy": NpyOutput,
    "tar": TarOutput,
}
LAST_FILES = {"parquet": "{}.parquet", "npy": "{}.codes.npy", "tar": "{}.tar"}
"""The file of a shard that is stored last: if it exists, the shard is complete."""


def check_format(name: str) -> None:
    """Raise ConfigError when a package of the format is not installed."""
    if name == "parquet" and find_spec("pyarrow") is None:
        raise ConfigError("--format parquet needs pyarrow: pip install pyarrow, or --format npy")
