"""One sample's fields to a row of the batch and a label."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.config.settings import Data
from aae_dist.data.decode import (
    MAX_FIELD_BYTES,
    Bad,
    decode_images,
    decode_into,
    is_array,
    layout,
    parse_label,
    staged,
)
from aae_dist.data.decode_array import Shape
from aae_dist.data.reader import ShardReader
from aae_dist.data.resize import Resize
from aae_dist.errors import SampleError

NO_LABEL = -1
Sample = tuple[ShardReader, int]
"""A shard, and the number of a sample in it."""
Place = tuple[int, int]
"""Start and size of a field in its shard, in bytes."""


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

    def decode(self, samples: Mapping[int, Sample], rows: NDArray[Any], bad: Bad) -> dict[int, int]:
        """Write the images or arrays of samples into `rows`; return their labels, -1 for none.

        Args:
            samples: Row -> the sample that goes there.
            rows: uint8 or float32 [n, C, H, W].
            bad: Takes the row and the error of each sample that cannot be used; what its row holds
                then is undefined.
        """
        fields = staged(lambda n: samples[n][0].index.fields(samples[n][1]), samples, bad)
        names = staged(lambda n: self._image_name(fields[n]), fields, bad)
        files = staged(lambda n: _read(samples[n][0], fields[n][names[n]]), names, bad)
        if rows.dtype == np.uint8 and not any(map(is_array, self._image_keys)):
            decode_images(rows, files, self._resize, bad)
        else:
            staged(lambda n: decode_into(rows[n], names[n], files[n], self._resize), files, bad)
        good = [n for n in files if n not in bad]
        return staged(lambda n: self._label(samples[n][0], fields[n]), good, bad)

    def _label(self, reader: ShardReader, fields: Mapping[str, Place]) -> int:
        if self._label_key not in fields:
            return NO_LABEL
        return parse_label(_read(reader, fields[self._label_key]), self._label_entry)

    def layout(self, reader: ShardReader, number: int) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of the sample's image or array; SampleError if it has none."""
        fields = reader.index.fields(number)
        name = self._image_name(fields)
        return layout(name, _read(reader, fields[name]), self._resize)

    def _image_name(self, fields: Mapping[str, Place]) -> str:
        for key in self._image_keys:
            if key in fields:
                return key
        wanted, got = ", ".join(self._image_keys), ", ".join(fields)
        raise SampleError(
            f"no image field (has {got!r:.200}; data.image_keys wants one of {wanted})",
            reason="field",
        )


def _read(reader: ShardReader, place: Place) -> bytes:
    if place[1] > MAX_FIELD_BYTES:
        raise SampleError(f"a field of {place[1]} bytes; at most {MAX_FIELD_BYTES}", reason="size")
    return reader.field(place)
