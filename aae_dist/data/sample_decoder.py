"""One sample's fields to a row of the batch and a label."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from aae_dist.config.settings import Data
from aae_dist.data.decode import MAX_FIELD_BYTES, decode_into, layout, parse_label
from aae_dist.data.decode_array import Shape
from aae_dist.data.reader import ShardReader
from aae_dist.data.resize import Resize
from aae_dist.errors import SampleError

NO_LABEL = -1
Place = tuple[int, int]
"""Start and size of a field in its shard, in bytes."""


class SampleDecoder:
    """Knows which fields of a sample are its image and its label.

    Every method raises SampleError when the sample cannot be used; the message lacks its name.
    """

    def __init__(self, settings: Data) -> None:
        """Take the run's `data` section."""
        self._image_keys = settings.image_keys
        self._resize = Resize.of(settings)
        # "json:label" is the entry `label` of the object in the field `json`.
        self._label_key, _, self._label_entry = (settings.label_key or "").partition(":")

    def decode(self, reader: ShardReader, number: int, row: NDArray[Any]) -> int:
        """Write the sample's image or array into `row` and return its label, -1 for none."""
        fields = reader.index.fields(number)
        name = self._image_name(fields)
        decode_into(row, name, _read(reader, fields[name]), self._resize)
        if self._label_key not in fields:
            return NO_LABEL
        return parse_label(_read(reader, fields[self._label_key]), self._label_entry)

    def layout(self, reader: ShardReader, number: int) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of the sample's image or array."""
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
