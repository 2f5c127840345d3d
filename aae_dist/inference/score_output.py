"""Files of anomaly scores, one per input shard: a row per sample, the columns of a reference."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.decode.sample import NO_LABEL


class ScoreParquet:
    """`NAME.parquet`: key (string), label (int64 or null), class (its name or null), scores."""

    def __init__(self, path: Path, columns: Sequence[str], classes: dict[int, str]) -> None:
        import pyarrow.parquet

        self._arrow: Any = pyarrow
        self.paths, self._columns, self._classes = [path], columns, classes
        self._schema = pyarrow.schema(
            [
                pyarrow.field("key", pyarrow.string(), nullable=False),
                pyarrow.field("label", pyarrow.int64()),
                pyarrow.field("class", pyarrow.string()),
                *(pyarrow.field(name, pyarrow.float64(), nullable=False) for name in columns),
            ]
        )
        self._parts: list[Any] = []

    def add(self, keys: Sequence[str], labels: NDArray[np.int64], rows: NDArray[Any]) -> None:
        columns = [
            self._arrow.array(keys, self._arrow.string()),
            self._arrow.array(labels, self._arrow.int64(), mask=labels == NO_LABEL),
            self._arrow.array(map(self._classes.get, labels.tolist()), self._arrow.string()),
            *(self._arrow.array(column) for column in rows.astype(np.float64).T),
        ]
        self._parts.append(self._arrow.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        # A sample takes 70 bytes: a shard's rows are one group.
        empty = self._schema.empty_table()
        table = self._arrow.concat_tables([empty, *self._parts]).combine_chunks()
        self._arrow.parquet.write_table(table, self.paths[0], compression="zstd")


class ScoreCsv:
    """`NAME.csv`: key, label (empty without one), and the scores with all their digits."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.paths = [path]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(["key", "label", *columns])

    def add(self, keys: Sequence[str], labels: NDArray[np.int64], rows: NDArray[Any]) -> None:
        for key, label, row in zip(keys, labels.tolist(), rows.tolist(), strict=True):
            self._writer.writerow([key, "" if label == NO_LABEL else label, *map(repr, row)])

    def close(self) -> None:
        self._file.close()
