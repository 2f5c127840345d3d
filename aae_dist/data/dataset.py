"""Images and labels of a data set by sample number, with an optional memory of decoded images."""

import threading
from collections.abc import Mapping, Sequence

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
Place = tuple[int, int]
"""Start and size of a field in its shard, in bytes."""

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
        labels = np.full(len(indices), NO_LABEL, np.int64)
        rows = images.numpy()
        for row, (reader, number) in enumerate(self._places(indices)):
            try:
                fields = reader.index.fields(number)
                data = reader.field(self._image_place(fields))
                rows[row] = decode_image(data, self.image_shape).numpy()
                labels[row] = self._label(reader, fields)
            except DataError as error:
                raise self._located(reader, number, error) from None
        return images, torch.from_numpy(labels)

    def _image_place(self, fields: Mapping[str, Place]) -> Place:
        for key in self._settings.image_keys:
            if key in fields:
                return fields[key]
        wanted, got = ", ".join(self._settings.image_keys), ", ".join(fields)
        raise DataError(f"no image field (has {got!r:.200}; data.image_keys wants one of {wanted})")

    def _label(self, reader: ShardReader, fields: Mapping[str, Place]) -> int:
        place = fields.get(self._settings.label_key or "")
        return NO_LABEL if place is None else parse_label(reader.field(place))

    def _located(self, reader: ShardReader, number: int, error: DataError) -> DataError:
        # A key comes from the archive: repr keeps control characters out of terminals and logs.
        return DataError(f"{reader.shard.url}, sample {reader.index.keys[number]!r:.200}: {error}.")

    def _shape_of_first(self) -> Shape:
        [(reader, number)] = self._places(np.zeros(1, np.int64))
        try:
            place = self._image_place(reader.index.fields(number))
            header = checked_header(reader.field(place))
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
