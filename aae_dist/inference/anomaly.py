"""How unusual single samples are to a trained run, by themselves and among validation samples.

Three scores: the reconstruction error, the log-density of the code among validation codes (or that
of a sampler fitted to codes) and the discriminator's logit. Each is given as it is and as its rank
among the validation samples, 0.99 for more unusual than 99 % of them, so that ranks compare across
runs. Files of scores have a row per sample.
Shapes: n validation samples, B samples, S scores, Z latent_dim.
"""

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as parse_tensors, save as format_tensors

from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.errors import DataError
from aae_dist.evaluation.evaluator import squared_errors
from aae_dist.inference import samplers, trained_run
from aae_dist.utils.arrays import stratified
from aae_dist.utils.tensors import Values, as_tensor

Table = NDArray[np.float64]
SIGNS = {"error": 1.0, "log_density": -1.0, "discriminator": 1.0}
"""The scores; -1 where low values are unusual.

The discriminator's logit tends to log p(z) / q(z), with the prior p and the codes q of training
data: high where such codes are rare.
"""
COMBINED = ("error", "log_density")
"""The scores that `combined` sums. With the discriminator's, whose logits say little where codes
match the prior, the AUROC of left-out digits was 0.02 lower (docs/benchmarks.md)."""
LOWEST = -1e6
"""Least log density: that of a fitted sampler falls without bound."""
CLOSEST = 1e-12
"""Least distance of two codes, which are equal where images are."""
MAX_REFERENCE = 10_000
MIN_REFERENCE = 100
TAIL = 0.1
"""Part of the validation samples above which the tail of a score is taken to be exponential."""
EULER = 0.5772156649015329
"""-psi(1), the Euler-Mascheroni constant."""


class Density(Protocol):
    """A density of codes: that of a fitted sampler, or of neighbours."""

    def log_prob(self, z_BZ: torch.Tensor) -> torch.Tensor:
        """Return log densities in nats, float64 (B)."""


@dataclass(frozen=True)
class Neighbours:
    """The density of codes by the distance r to the nearest of n known ones.

    log p(z) = psi(1) - log n - log V - Z log r, with the volume V of the unit ball: of Loftsgaarden
    and Quesenberry (Annals of Mathematical Statistics 36, 1965), without bias on average
    (Kozachenko and Leonenko, 1987). It needs no fitting. Codes that match the prior differ from
    others in places that the prior's density does not know of. A known code that is closer than
    `same` is taken to be of the same sample, and does not count: validation samples may be scored.
    """

    known_nZ: torch.Tensor
    """Float32 codes."""

    @cached_property
    def same(self) -> float:
        """A twentieth of the median distance of a known code to the nearest other."""
        some_BZ = self.known_nZ[stratified(1000, len(self.known_nZ))]
        nearest_B2 = self._distances(some_BZ).topk(2, largest=False).values
        return float(nearest_B2[:, 1].median()) / 20

    def log_prob(self, z_BZ: torch.Tensor) -> torch.Tensor:
        num, dims = self.known_nZ.shape
        log_volume = dims / 2 * math.log(math.pi) - math.lgamma(dims / 2 + 1)
        r_Bn = self._distances(z_BZ)
        r_B = r_Bn.masked_fill_(r_Bn < self.same, math.inf).amin(1).clamp_min(CLOSEST)
        return -EULER - math.log(num) - log_volume - dims * r_B.log()

    def _distances(self, z_BZ: torch.Tensor) -> torch.Tensor:
        return torch.cdist(z_BZ.double(), self.known_nZ.double())


@dataclass(frozen=True)
class Scorer:
    """Scores samples of one run."""

    run: trained_run.TrainedRun
    density: Density

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The scores that the run has: without a discriminator there is one less."""
        return _names(self.run)

    def __call__(self, images: Values, labels: Values | None = None) -> Table:
        """Return the scores of images, float64 (B, S).

        `error` is squared and per value, `log_density` in nats (-1e6 stands for less),
        `discriminator` the sum of the logits of all parts, high for codes that look more like prior
        samples than like training codes. Images and errors are those of `TrainedRun.encode`.
        """
        z_BZ, columns = _columns(self.run, images, labels)
        return _table(self.names, {**columns, "log_density": self.density.log_prob(z_BZ)})


def _names(run: trained_run.TrainedRun) -> tuple[str, ...]:
    any_code = torch.zeros(1, run.config.model.latent_dim)
    has = run.discriminate(any_code) is not None
    return tuple(name for name in SIGNS if has or name != "discriminator")


def _columns(
    run: trained_run.TrainedRun, images: Values, labels: Values | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Return the codes, float32 (B, Z) on the CPU, and the scores that need no density."""
    z_BZ = run.encode(images, labels)
    x_BCHW = as_tensor("images", images).to(run.device)
    rebuilt = run.reconstruct(images, labels)
    error_B = squared_errors(rebuilt, x_BCHW.reshape(rebuilt.shape)) / rebuilt[0].numel()
    return z_BZ.float().cpu(), {"error": error_B, "discriminator": run.discriminate(z_BZ)}


def _table(names: Sequence[str], columns: dict[str, torch.Tensor | None]) -> Table:
    found = [column for name in names if (column := columns[name]) is not None]
    table: Table = torch.stack([c.double().cpu() for c in found], 1).clamp(min=LOWEST).numpy()
    return table


def reference_of(
    run: trained_run.TrainedRun,
    data: Sequence[str] | None = None,
    sampler: Density | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> "Reference":
    """Score at most 10,000 validation samples, spread over all; those that are bad are left out.

    Without a sampler the density of each code is that among the other codes.

    Raises:
        ConfigError: no data are given and the run was trained without validation data.
        DataError: they cannot be read, or are too few.
    """
    chunks = samplers.readable_chunks(run.open(data), MAX_REFERENCE, advance)
    names, codes, rest = _names(run), [], []
    for images, labels in chunks:
        z_BZ, columns = _columns(run, images, labels)
        table = _table([n for n in names if n != "log_density"], columns)
        good = np.isfinite(table).all(1) & z_BZ.isfinite().all(1).numpy()
        codes.append(z_BZ[torch.from_numpy(good)])
        rest.append(table[good])
    num = sum(map(len, codes))
    if num < MIN_REFERENCE:
        raise DataError(
            f"{num} validation samples are too few to rank samples among; give at least "
            f"{MIN_REFERENCE} by --reference"
        )
    z_nZ = torch.cat(codes)
    density = sampler or Neighbours(z_nZ)
    # In chunks: distances of all pairs at once would take 800 MB.
    logs_n = torch.cat([density.log_prob(part_BZ) for part_BZ in z_nZ.split(samplers.CHUNK)])
    table = np.insert(
        np.concatenate(rest), names.index("log_density"), logs_n.clamp(min=LOWEST), axis=1
    )
    return Reference(names, table, z_nZ)


@dataclass(frozen=True)
class Reference:
    """The scores of validation samples, among which others are ranked."""

    names: tuple[str, ...]
    table: Table
    """Float64 (n, S)."""
    codes_nZ: torch.Tensor
    """Float32 codes of these samples, for `Neighbours`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rank`."""
        return (*self.names, *(f"{name}_rank" for name in self.names), "combined", "rank")

    def rank(self, table: Table) -> Table:
        """Return all columns of B samples, float64 (B, 2 S + 2), from their scores (B, S)."""
        found, known = self.evidence(table), self._own_evidence
        each = [share_below(np.sort(known[:, k]), found[:, k]) for k in range(len(self.names))]
        used = [self.names.index(name) for name in COMBINED]
        combined = found[:, used].sum(1)
        rank = share_below(np.sort(known[:, used].sum(1)), combined)
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
            columns.append(_tail(np.sort(known), x))
        return np.column_stack(columns)

    @cached_property
    def _own_evidence(self) -> Table:
        return self.evidence(self.table)

    def to_bytes(self) -> bytes:
        """Return scores and codes as the bytes of a safetensors file."""
        return format_tensors({"table": torch.from_numpy(self.table), "codes": self.codes_nZ})

    @classmethod
    def from_bytes(cls, names: tuple[str, ...], data: bytes) -> "Reference":
        """Return the reference that `to_bytes` has saved."""
        tensors = parse_tensors(data)
        return cls(names, tensors["table"].numpy(), tensors["codes"])


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
