"""One sample's fields to a row of the batch and a label."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.config.sections.data import Data
from aae_dist.data.decode.arrays import Shape
from aae_dist.data.decode.images import (
    MAX_FIELD_BYTES,
    MAX_LABEL_BYTES,
    Bad,
    batch_by_size,
    decode_images,
    decode_into,
    is_array,
    layout,
    map_collecting_errors,
    parse_label,
)
from aae_dist.data.decode.resize import Resize
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.format.tar import ByteRange
from aae_dist.errors import SampleError

NO_LABEL = -1
Sample = tuple[ShardReader, int]
"""A shard, and the number of a sample in it."""
_BYTES_AT_ONCE = 16 << 20
"""Files of images, arrays and labels held at a time by a thread. One of them may have more."""


class SampleDecoder:
    """Knows which fields of a sample are its image and its label.

    A SampleError lacks the sample's name.
    """

    def __init__(self, settings: Data) -> None:
        """Take the run's `data` section."""
        self._image_keys = settings.image_keys
        self._resize = Resize.of(settings)
        # "json:label" is the entry `label` of the object in the field `json`.
        self._label_key, _, self._label_entry = (settings.label_key or "").partition(":")
        # Nearly all samples have the same few names.
        self._columns = lru_cache(1000)(self._find_columns)

    def decode(self, samples: Mapping[int, Sample], rows: NDArray[Any], bad: Bad) -> dict[int, int]:
        """Write the images or arrays of samples into `rows`; return their labels, -1 for none.

        Args:
            samples: Row -> the sample that goes there.
            rows: uint8 or float32 [n, C, H, W].
            bad: Takes the row and the error of each sample that cannot be used; what its row holds
                then is undefined.
        """
        places = map_collecting_errors(lambda n: self._places(*samples[n]), samples, bad)
        sizes = {n: sum(size for _, size in each) for n, each in places.items()}
        labels: dict[int, int] = {}
        for group in batch_by_size(sizes, _BYTES_AT_ONCE):
            files = map_collecting_errors(lambda n: samples[n][0].read(places[n]), group, bad)
            self._decode_images(samples, files, rows, bad)
            good = [n for n in files if n not in bad]
            labels |= map_collecting_errors(partial(self._label, files), good, bad)
            del files  # or two groups would be held while the next is read
        return labels

    def _decode_images(
        self,
        samples: Mapping[int, Sample],
        files: Mapping[int, list[bytes]],
        rows: NDArray[Any],
        bad: Bad,
    ) -> None:
        images = {n: file[0] for n, file in files.items()}
        if rows.dtype == np.uint8 and not any(map(is_array, self._image_keys)):
            return decode_images(rows, images, self._resize, bad)

        def decode(n: int) -> None:
            decode_into(rows[n], self._image_name(*samples[n]), images[n], self._resize)

        map_collecting_errors(decode, images, bad)
        return None

    def _label(self, files: Mapping[int, list[bytes]], number: int) -> int:
        """Return the label from what was read of sample `number`: its image and, if any, label."""
        label = files[number][1:]
        return parse_label(label[0], self._label_entry) if label else NO_LABEL

    def layout(self, reader: ShardReader, number: int) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of the sample's image or array; SampleError if it has none."""
        data = reader.read(self._places(reader, number)[:1])[0]
        return layout(self._image_name(reader, number), data, self._resize)

    def _places(self, reader: ShardReader, number: int) -> list[ByteRange]:
        """Return where the sample's image is and, if it has one, its label."""
        index = reader.index  # read once: another thread may replace it
        first, names = index.names(number)
        image, label = self._columns(names)
        place = index.place(first + image)
        if place[1] > MAX_FIELD_BYTES:
            raise SampleError(
                f"a field of {place[1]} bytes; at most {MAX_FIELD_BYTES}", reason="size"
            )
        if label is None:
            return [place]
        start, size = index.place(first + label)
        return [place, (start, min(size, MAX_LABEL_BYTES + 1))]

    def _image_name(self, reader: ShardReader, number: int) -> str:
        _, names = reader.index.names(number)
        return names[self._columns(names)[0]]

    def _find_columns(self, names: tuple[str, ...]) -> tuple[int, int | None]:
        """Return which of a sample's fields is the image, and which the label."""
        has_label = bool(self._label_key) and self._label_key in names
        label = names.index(self._label_key) if has_label else None
        for key in self._image_keys:
            if key in names:
                return names.index(key), label
        wanted, got = ", ".join(self._image_keys), ", ".join(names)
        raise SampleError(
            f"no image field (has {got!r:.200}; data.image_keys wants one of {wanted})",
            reason="field",
        )
