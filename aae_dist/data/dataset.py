"""Images and labels of a data set by sample number, with an optional memory of decoded images."""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.config.settings import Data
from aae_dist.data.decode import Shape, checked_header, decode_image, parse_label
from aae_dist.data.index import open_manifest
from aae_dist.data.manifest import Manifest
from aae_dist.data.permutation import Indices
from aae_dist.data.reader import OpenShards, ShardReader
from aae_dist.errors import DataError

NO_LABEL = -1
_AUTO_MEMORY_BYTES = 2 << 30


class Dataset:
    """A data set, open for reading; sample numbers follow the manifest.

    Safe to read from several threads.

    Args:
        manifest: The shards.
        settings: The run's `data` section.
        image_shape: Wanted (C, H, W), for example that of the training images; None takes what
            `settings` says and else the first image's.

    Raises:
        DataError: The first sample cannot be read.
    """

    def __init__(
        self, manifest: Manifest, settings: Data, image_shape: Shape | None = None
    ) -> None:
        self.manifest = manifest
        self._settings = settings
        self._ends = np.cumsum(manifest.counts)
        self._shards = OpenShards(manifest)
        self.image_shape: Shape = image_shape or self._shape_of_first()
        """Channels, height, width of every image."""
        self._memory = self._new_memory()

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.manifest.num_samples

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels.

        Args:
            indices: Sample numbers, int64 [n]; repeats are allowed.

        Returns:
            Images, uint8 [n, C, H, W], and labels, int64 [n], -1 where a sample has none.

        Raises:
            DataError: A sample is damaged, or not of `image_shape`.
        """
        wanted = np.asarray(indices, np.int64)
        if self._memory is None:
            return self._decode(wanted)
        missing = np.unique(wanted[~self._memory.filled[wanted]])
        if missing.size:
            self._memory.store(missing, *self._decode(missing))
        return self._memory.take(wanted)

    def keys(self, indices: Indices | Sequence[int]) -> list[str]:
        """Return the WebDataset keys of samples."""
        return [reader.index.keys[n] for reader, n in self._places(np.asarray(indices, np.int64))]

    def _places(self, indices: Indices) -> list[tuple[ShardReader, int]]:
        """Return the shard and the number in it of every sample."""
        shards = np.searchsorted(self._ends, indices, side="right")
        inside = indices - (self._ends[shards] - self.manifest.counts[shards])
        pairs = zip(shards.tolist(), inside.tolist(), strict=True)
        return [(self._shards.get(shard), number) for shard, number in pairs]

    def _decode(self, indices: Indices) -> tuple[Tensor, Tensor]:
        images = torch.empty((len(indices), *self.image_shape), dtype=torch.uint8)
        labels = torch.full((len(indices),), NO_LABEL, dtype=torch.int64)
        for row, (reader, number) in enumerate(self._places(indices)):
            try:
                images[row] = decode_image(self._image_bytes(reader, number), self.image_shape)
                labels[row] = self._label(reader, number)
            except DataError as error:
                raise self._located(reader, number, error) from None
        return images, labels

    def _image_bytes(self, reader: ShardReader, number: int) -> bytes:
        data = reader.first_field(number, self._settings.image_keys)
        if data is None:
            wanted, got = (
                ", ".join(self._settings.image_keys),
                ", ".join(reader.index.fields(number)),
            )
            raise DataError(f"no image field (has {got}; data.image_keys wants one of {wanted})")
        return data

    def _label(self, reader: ShardReader, number: int) -> int:
        key = self._settings.label_key
        data = None if key is None else reader.first_field(number, (key,))
        return NO_LABEL if data is None else parse_label(data)

    def _located(self, reader: ShardReader, number: int, error: DataError) -> DataError:
        # A key comes from the archive: repr keeps control characters out of terminals and logs.
        return DataError(f"{reader.shard.url}, sample {reader.index.keys[number]!r:.200}: {error}.")

    def _shape_of_first(self) -> Shape:
        [(reader, number)] = self._places(np.zeros(1, np.int64))
        try:
            header = checked_header(self._image_bytes(reader, number))
        except DataError as error:
            raise self._located(reader, number, error) from None
        size, channels = self._settings.image_size, self._settings.channels
        return channels or header.channels, size or header.height, size or header.width

    def _new_memory(self) -> "_Memory | None":
        num_bytes = len(self) * int(np.prod(self.image_shape))
        kind = self._settings.decoded
        wanted = kind == "memory" or (kind == "auto" and num_bytes <= _AUTO_MEMORY_BYTES)
        return _Memory(len(self), self.image_shape) if wanted else None


class _Memory:
    """Decoded images of samples read so far; pages that were never written take no memory."""

    def __init__(self, num_samples: int, shape: Shape) -> None:
        self._images: NDArray[np.uint8] = np.empty((num_samples, *shape), np.uint8)
        self._labels: NDArray[np.int64] = np.empty(num_samples, np.int64)
        self.filled: NDArray[np.bool_] = np.zeros(num_samples, np.bool_)
        self._lock = threading.Lock()

    def store(self, indices: Indices, images: Tensor, labels: Tensor) -> None:
        with self._lock:
            self._images[indices] = images.numpy()
            self._labels[indices] = labels.numpy()
            self.filled[indices] = True

    def take(self, indices: Indices) -> tuple[Tensor, Tensor]:
        # numpy copies rows in this thread alone; torch would start a team of threads for it.
        images = torch.from_numpy(self._images.take(indices, axis=0))
        return images, torch.from_numpy(self._labels.take(indices))


def open_dataset(
    urls: str | Sequence[str], settings: Data, image_shape: Shape | None = None
) -> Dataset:
    """Open the shards that `urls` name.

    Args:
        urls: `settings.train` or `settings.validation`.
        settings: The run's `data` section.
        image_shape: (C, H, W) that the images must have; by default as `settings` says, or as the
            first image is. Give the training images' shape for the validation images.

    Raises:
        DataError: Nothing is found or it cannot be read; one line says what and what to do.
    """
    return Dataset(open_manifest(urls), settings, image_shape)
