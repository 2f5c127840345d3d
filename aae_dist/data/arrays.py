"""Samples in memory as a data set: the same order, masks and checkpoints as for shards.

Samples are numbered as given. `Arrays.manifest` names shards after a hash of the contents, and
`pack_arrays` writes shards of these names: a run may continue on either, since their manifests
have the same id. Of a sparse matrix, only what is read is dense.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.config.sections.run import Data, Layout
from aae_dist.data.bad_samples import Unused
from aae_dist.data.dataset import Dataset, Samples
from aae_dist.data.decode.images import Shape
from aae_dist.data.format.manifest import ClassMap, Manifest, Shard
from aae_dist.data.order import Indices
from aae_dist.errors import ConfigError, DataError

SCHEME = "memory://"
SHARD_SAMPLES, SHARD_BYTES = 5000, 256 << 20
"""Largest number of samples and of their bytes in memory per shard, when they are packed."""
_HASH_ROWS = 4096


class SparseRows:
    """A matrix of SciPy in CSR form, as an array of vectors (N, 1, 1, D), float32.

    It has what of NumPy's arrays training uses. A row takes 8 bytes per number that is not zero.
    """

    dtype = np.dtype(np.float32)
    itemsize, ndim = 4, 4
    shape: tuple[int, int, int, int]

    def __init__(self, matrix: Any) -> None:
        """Copy `matrix`, (N, D), into one form, so that equal ones have one hash."""
        rows = matrix.tocsr().astype(np.float32)
        if rows is matrix:
            rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
        self.rows = rows
        self.shape = (rows.shape[0], 1, 1, rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: int | slice | NDArray[Any]) -> Any:
        """Return dense samples; those of a mask or of numbers stay sparse."""
        if isinstance(chosen, np.ndarray):
            return SparseRows(self.rows[chosen])
        if isinstance(chosen, slice):
            return self._dense(self.rows[chosen])
        return self._dense(self.rows[[chosen]])[0]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[number] for number in range(len(self)))

    def take(self, indices: NDArray[np.int64], axis: int = 0) -> NDArray[np.float32]:
        """Return dense samples of these numbers, float32 (n, 1, 1, D)."""
        assert axis == 0
        return self._dense(self.rows[indices])

    def digest(self) -> bytes:
        """Return the SHA-256 of all numbers and of where they are."""
        digest = sha256(str(self.shape).encode())
        for part, kind in (("data", "<f4"), ("indices", "<i8"), ("indptr", "<i8")):
            digest.update(np.ascontiguousarray(getattr(self.rows, part), kind).data)
        return digest.digest()

    @staticmethod
    def _dense(rows: Any) -> NDArray[np.float32]:
        dense: NDArray[np.float32] = rows.toarray()
        return dense[:, None, None]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Samples in memory, checked.

    Attributes:
        images: uint8 or float32 (N, C, H, W), finite; vectors of D numbers are (N, 1, 1, D),
            signals (N, C, L) and volumes (N, C, D, H, W).
        labels: int64 (N), -1 for none.
        classes: number of each label that has a name.
    """

    images: NDArray[Any] | SparseRows
    labels: NDArray[np.int64]
    classes: ClassMap = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of shape, type, numbers and labels."""
        digest = sha256(f"{self.images.shape} {self.images.dtype.str}".encode())
        if isinstance(self.images, SparseRows):
            digest.update(self.images.digest())
        for start in range(0, len(self.images) if self.is_dense else 0, _HASH_ROWS):
            rows = np.ascontiguousarray(self.images[start : start + _HASH_ROWS])
            digest.update(rows.data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    @property
    def is_dense(self) -> bool:
        """Whether all numbers are held, not only those that are not zero."""
        return isinstance(self.images, np.ndarray)

    @property
    def is_png(self) -> bool:
        """Whether shards hold the samples as PNG; else as .npy arrays."""
        is_images = self.images.dtype == np.uint8 and self.images.ndim == 4
        return is_images and self.images.shape[1] in (1, 3)

    @property
    def layout(self) -> Layout | None:
        """`data.layout` of these samples in shards; images and vectors need none."""
        return {3: "NCL", 5: "NCDHW"}.get(self.images.ndim)  # type: ignore[return-value]

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of `data` that shards of these samples need."""
        found: dict[str, Any] = {"layout": self.layout}
        return found if self.is_png else {**found, "image_keys": ["npy"]}

    @property
    def url(self) -> str:
        """The address that stands for the samples in `data.train` or `data.validation`."""
        return f"{SCHEME}{self.id}"

    @property
    def shard_samples(self) -> int:
        """Samples per shard; the last one may have fewer."""
        row = max(1, math.prod(self.images.shape[1:]) * self.images.itemsize)
        return max(1, min(SHARD_SAMPLES, SHARD_BYTES // row))

    @cached_property
    def manifest(self) -> Manifest:
        """The shards that `pack_arrays` writes, by their names and numbers of samples."""
        total, size = len(self.images), self.shard_samples
        counts = [min(size, total - start) for start in range(0, total, size)]
        shards = (
            Shard("memory://arrays", shard_name(self.id, f"{number:06d}"), count, 0)
            for number, count in enumerate(counts)
        )
        return Manifest(tuple(shards), self.classes)


def shard_name(content: str, number: str) -> str:
    """Return the name of a packed shard of arrays whose id is `content`."""
    return f"{content[:32]}-{number}.tar"


_held: "weakref.WeakValueDictionary[str, Arrays]" = weakref.WeakValueDictionary()


def hold(arrays: Arrays) -> str:
    """Let `open_dataset` find the samples while the caller keeps them; return their address."""
    _held[arrays.url] = arrays
    return arrays.url


def find(urls: str | Sequence[str]) -> Arrays | None:
    """Return the samples that an address of `hold` stands for; None for addresses of shards.

    Raises:
        DataError: this process does not hold them.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    if not any(url.startswith(SCHEME) for url in given):
        return None
    if len(given) > 1:
        raise DataError(f"{given[0]}: samples in memory do not mix with shards; give one of them.")
    found = _held.get(given[0])
    if found is None:
        raise DataError(
            f"{given[0][:24]}...: this process does not hold these samples, which were given in "
            "memory from Python; give the same arrays again, or shards."
        )
    return found


class ArrayDataset(Dataset):
    """A data set of samples in memory.

    Raises:
        ConfigError: `settings` ask to change images, or `image_shape` is another one.
    """

    def __init__(self, arrays: Arrays, settings: Data, image_shape: Shape | None = None) -> None:
        shape = arrays.images.shape[1:]
        _check_settings(settings, shape)
        if image_shape is not None and shape != image_shape:
            raise ConfigError(
                f"samples in memory have shape {shape}, and {image_shape} is wanted, as for "
                "training; give validation data of the same shape"
            )
        self.manifest, self.cache, self.unused = arrays.manifest, None, Unused()
        self.image_shape, self.dtype = shape, torch.from_numpy(arrays.images[:0]).dtype
        self._arrays, self._settings = arrays, settings
        self._ends = np.cumsum(self.manifest.counts)

    def load(self, indices: Indices | Sequence[int], workers: Executor | None = None) -> Samples:
        wanted = np.asarray(indices, np.int64)
        images = torch.from_numpy(self._arrays.images.take(wanted, axis=0))
        return Samples(images, torch.from_numpy(self._arrays.labels.take(wanted)), {})

    def decode_rows(self, indices: Indices, workers: Executor | None = None) -> Samples:
        return self.load(indices)

    def keys(self, indices: Indices | Sequence[int]) -> list[str]:
        return [f"{number:08d}" for number in np.asarray(indices, np.int64).tolist()]

    def unused_members(self) -> list[str]:
        return []

    def slow_sample(self) -> str:
        return ""


def _check_settings(settings: Data, shape: Shape) -> None:
    channels, *sides = shape
    is_square = len(sides) == 2 and sides[0] == sides[1]
    wanted = {
        "image_size": (settings.image_size, sides[0] if is_square else None),
        "channels": (settings.channels, channels),
        "crop_size": (settings.crop_size, None),
    }
    for key, (asked, has) in wanted.items():
        if asked is not None and asked != has:
            raise ConfigError(
                f"data.{key}={asked}: samples in memory are used as they are, of shape {shape}; "
                "leave it out, or change the arrays"
            )
