"""Files that one input shard becomes: codes as parquet or npy, images as a WebDataset tar.

Rows come in order and a chunk at a time, so no file is ever held in memory. The bytes are a
function of the rows alone: no times, no host, no chunking that depends on who writes.
"""

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.errors import ConfigError

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]

GROUP_BYTES = 8 << 20
"""Codes of one parquet row group, which is what a reader loads at a time."""


class ShardOutput(Protocol):
    """Takes the rows of one shard, in order."""

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        """Take the next rows; a label of -1 is none."""

    def close(self) -> list[Path]:
        """Finish the files and return them, the one whose presence says 'done' last."""


class ParquetOutput:
    """`NAME.parquet`: key (string), label (int64 or null), code (fixed-size list of float32)."""

    def __init__(self, folder: Path, name: str, num_rows: int, width: int) -> None:
        """Open the file; `width` is the latent dimension."""
        import pyarrow
        from pyarrow import parquet

        self._arrow: Any = pyarrow
        self._path, self._width = folder / f"{name}.parquet", width
        self._schema = pyarrow.schema(
            [
                pyarrow.field("key", pyarrow.string(), nullable=False),
                pyarrow.field("label", pyarrow.int64()),
                pyarrow.field("code", pyarrow.list_(pyarrow.float32(), width), nullable=False),
            ]
        )
        self._writer: Any = parquet.ParquetWriter(self._path, self._schema, compression="zstd")
        self._group_rows = max(1, GROUP_BYTES // (4 * width))
        self._keys: list[str] = []
        self._labels: list[Labels] = []
        self._rows: list[Rows] = []

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        """Keep the rows until they fill a row group."""
        self._keys += keys
        self._labels.append(labels)
        self._rows.append(rows)
        if len(self._keys) >= self._group_rows:
            self._write_group()

    def close(self) -> list[Path]:
        """Write the last row group."""
        if self._keys:
            self._write_group()
        self._writer.close()
        return [self._path]

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

    def __init__(self, folder: Path, name: str, num_rows: int, width: int) -> None:
        """Open the files for `num_rows` rows; the codes are mapped, not held."""
        self._paths = [folder / f"{name}.{part}.npy" for part in ("keys", "labels", "codes")]
        self._keys: list[str] = []
        self._labels = np.empty(num_rows, np.int64)
        self._file = self._paths[-1].open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        """Append the rows."""
        start = len(self._keys)
        self._keys += keys
        self._labels[start : start + len(labels)] = labels
        self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())

    def close(self) -> list[Path]:
        """Write keys and labels."""
        self._file.close()
        np.save(self._paths[0], np.array(self._keys, dtype=np.str_), allow_pickle=False)
        np.save(self._paths[1], self._labels, allow_pickle=False)
        return self._paths


class TarOutput:
    """`NAME.tar`: a WebDataset shard of PNG images with their labels, under the input's keys.

    With `as_arrays` float32 arrays in the field npy stand in place of the images, for data of
    floats, or of channels that no PNG has.
    """

    as_arrays = False

    def __init__(self, folder: Path, name: str, num_rows: int, width: int) -> None:
        """Open the file; the images say their size themselves."""
        from webdataset import TarWriter

        self._path = folder / f"{name}.tar"
        self._writer: Any = TarWriter(str(self._path), mtime=0)

    def add(self, keys: Sequence[str], labels: Labels, rows: Rows) -> None:
        """Append images [n, C, H, W] with pixels in [0, 1]."""
        for key, label, image in zip(keys, labels.tolist(), rows, strict=True):
            fields: dict[str, str | bytes] = {"__key__": key}
            if self.as_arrays:
                fields["npy"] = npy_bytes(image)
            else:
                fields["png"] = png_bytes(image)
            if label != NO_LABEL:
                fields["cls"] = str(label).encode()
            self._writer.write(fields)

    def close(self) -> list[Path]:
        """Write the end of the archive."""
        self._writer.close()
        return [self._path]


def npy_bytes(array: NDArray[np.float32]) -> bytes:
    """Return the array as a .npy file, little-endian."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, "<f4"), allow_pickle=False)
    return buffer.getvalue()


def png_bytes(image: NDArray[np.float32]) -> bytes:
    """Return the PNG of an image [C, H, W] with one or three channels, clipped to [0, 1]."""
    pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Path, str, int, int], ShardOutput]] = {
    "parquet": ParquetOutput,
    "npy": NpyOutput,
    "tar": TarOutput,
}
LAST_FILES = {"parquet": "{}.parquet", "npy": "{}.codes.npy", "tar": "{}.tar"}
"""The file of a shard that is stored last: where it is, the shard is whole."""


def check_format(name: str) -> None:
    """Raise ConfigError when what the format needs is not installed."""
    if name == "parquet" and find_spec("pyarrow") is None:
        raise ConfigError("--format parquet needs pyarrow: pip install pyarrow, or --format npy")
