"""How unusual single samples are to a trained run, by themselves and among validation samples.

Three scores: the reconstruction error, the log-density of the code (the prior's, or that of a
sampler fitted to codes) and the discriminator's logit. Each is given as it is and as its rank among
the validation samples, 0.99 for more unusual than 99 % of them, so that ranks compare across runs.
Files of scores have a row per sample.
Shapes: n validation samples, B samples, S scores.
"""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.errors import DataError
from aae_dist.evaluation.evaluator import squared_errors
from aae_dist.inference.samplers import Sampler, readable_chunks
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.utils.arrays import npy_bytes
from aae_dist.utils.tensors import Values, as_tensor

Table = NDArray[np.float64]
SIGNS = {"error": 1.0, "log_density": -1.0, "discriminator": 1.0}
"""The scores; -1 where low values are unusual.

The discriminator's logit tends to log p(z) / q(z), with the prior p and the codes q of training
data: high where such codes are rare.
"""
LOWEST = -1e6
"""Least log density: a uniform prior has none outside its cube."""
MAX_REFERENCE = 10_000
MIN_REFERENCE = 100
TAIL = 0.1
"""Part of the validation samples above which the tail of a score is taken to be exponential."""


@dataclass(frozen=True)
class Scorer:
    """Scores samples of one run."""

    run: TrainedRun
    sampler: Sampler | None = None
    """The density of codes; None for that of the prior."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The scores that the run has: without a density or a discriminator there are fewer."""
        has_density = self.sampler is not None or self._density(self._any_code()) is not None
        has = {"error": True, "log_density": has_density}
        has["discriminator"] = self.run.discriminate(self._any_code()) is not None
        return tuple(name for name in SIGNS if has[name])

    def __call__(self, images: Values, labels: Values | None = None) -> Table:
        """Return the scores of images, float64 (B, S).

        `error` is squared and per value, `log_density` in nats (-1e6 stands for less),
        `discriminator` the sum of the logits of all parts, high for codes that look more like prior
        samples than like training codes. Images and errors are those of `TrainedRun.encode`.
        """
        z_BZ = self.run.encode(images, labels)
        x_BCHW = as_tensor("images", images).to(self.run.device)
        rebuilt = self.run.reconstruct(images, labels)
        columns = {
            "error": squared_errors(rebuilt, x_BCHW.reshape(rebuilt.shape)) / rebuilt[0].numel(),
            "log_density": self._density(z_BZ),
            "discriminator": self.run.discriminate(z_BZ),
        }
        found = [columns[name] for name in self.names]
        table: Table = torch.stack([c.double().cpu() for c in found if c is not None], 1).numpy()
        return table

    def _density(self, z_BZ: torch.Tensor) -> torch.Tensor | None:
        z = z_BZ.float().cpu()
        found = self.run.prior.log_prob(z) if self.sampler is None else self.sampler.log_prob(z)
        return None if found is None else found.clamp(min=LOWEST)

    def _any_code(self) -> torch.Tensor:
        return torch.zeros(1, self.run.config.model.latent_dim)

    def reference(
        self, data: Sequence[str] | None = None, advance: Callable[[int], object] = lambda _: None
    ) -> "Reference":
        """Score at most 10,000 evenly spaced validation samples; those that are bad are left out.

        Raises:
            ConfigError: no data are given and the run was trained without validation data.
            DataError: they cannot be read, or are too few.
        """
        chunks = readable_chunks(self.run.open(data), MAX_REFERENCE, advance)
        tables = [self(images, labels) for images, labels in chunks]
        table = np.concatenate(tables) if tables else np.empty((0, len(self.names)))
        table = table[np.isfinite(table).all(1)]
        if len(table) < MIN_REFERENCE:
            raise DataError(
                f"{len(table)} validation samples are too few to rank samples among; give at least "
                f"{MIN_REFERENCE} by --reference"
            )
        return Reference(self.names, table, self.is_two_sided)

    @property
    def is_two_sided(self) -> bool:
        """Whether a density above that of nearly all samples is unusual, too: the prior's."""
        return self.sampler is None


@dataclass(frozen=True)
class Reference:
    """The scores of validation samples, among which others are ranked."""

    names: tuple[str, ...]
    table: Table
    """Float64 (n, S)."""
    is_two_sided: bool
    """Whether high log-densities count as unusual like low ones: the codes of ordinary samples do
    not lie at the prior's mode, so a code there is unusual (Nalisnick et al., arXiv 1906.02994)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rank`."""
        return (*self.names, *(f"{name}_rank" for name in self.names), "combined", "rank")

    def rank(self, table: Table) -> Table:
        """Return all columns of B samples, float64 (B, 2 S + 2), from their scores (B, S)."""
        found, known = self.evidence(table), self._own_evidence
        each = [share_below(np.sort(known[:, k]), found[:, k]) for k in range(len(self.names))]
        combined = found.sum(1)
        rank = share_below(np.sort(known.sum(1)), combined)
        return np.column_stack([table, *each, combined, rank])

    def evidence(self, table: Table) -> Table:
        """Return -log p of the scores of B samples, (B, S), high for unusual ones.

        p is the part of the validation samples that are as unusual; in the last tenth it falls
        exponentially, so that values beyond the highest still differ. The sum over scores is that
        of Fisher's method.
        """
        columns = []
        for k, name in enumerate(self.names):
            known, x = (t[:, k] * SIGNS[name] for t in (self.table, table))
            evidence = _tail(np.sort(known), x)
            if name == "log_density" and self.is_two_sided:
                evidence = np.maximum(evidence, _tail(np.sort(-known), -x))
            columns.append(evidence)
        return np.column_stack(columns)

    @cached_property
    def _own_evidence(self) -> Table:
        return self.evidence(self.table)

    def to_bytes(self) -> bytes:
        """Return the scores as the bytes of an .npy file."""
        return npy_bytes(self.table, "<f8")

    @classmethod
    def from_bytes(cls, names: tuple[str, ...], data: bytes, is_two_sided: bool) -> "Reference":
        """Return the reference that `to_bytes` has saved."""
        return cls(names, np.load(io.BytesIO(data), allow_pickle=False), is_two_sided)


def _tail(known: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log of the part of `known`, ascending, that lies above each value."""
    edge = np.quantile(known, 1 - TAIL)
    above = known[known > edge]
    scale = float((above - edge).mean()) if len(above) else math.inf
    inner = -np.log(np.clip(1 - share_below(known, x), TAIL, 1.0))
    return np.where(x > edge, -math.log(TAIL) + np.maximum(x - edge, 0) / scale, inner)


def share_below(known: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the part of `known`, ascending, that lies below each value; of equal ones half."""
    below = np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")
    return below / (2 * len(known))


def digest(data: bytes) -> str:
    """Return the SHA-256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


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
