"""Fields of a sample to a row of the batch and a label.

Arrays are uint8 or float32 of one to four dimensions, never pickled objects.
"""

import io
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from aae_dist.config.sections.run import Data, Layout
from aae_dist.data.decode import images as decoding
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.format.tar import ByteRange
from aae_dist.errors import SampleError

NO_LABEL = -1
MAX_FIELD_BYTES = 256 << 20  # largest file of an image or array that is decoded
MAX_LABEL_BYTES = 1 << 16
Sample = tuple[ShardReader, int]  # a shard, and the number of a sample in it
_BYTES_PER_GROUP = 16 << 20  # files that a thread holds at once; one of them may have more
_LABEL = re.compile(rb"\s*(-?[0-9]{1,18})(?:\.0*)?\s*")
DEFAULT_LABEL_KEY = Data.model_fields["label_key"].default


class SampleDecoder:
    """Decodes image and label as the `data` section names them; errors lack the sample's name."""

    def __init__(self, settings: Data) -> None:
        self._image_keys = settings.image_keys
        self._only_images = not any(map(is_array, settings.image_keys))
        self._resize, self._axes = decoding.Resize.from_settings(settings), settings.layout
        # "json:label" is the entry `label` of the object in the field `json`.
        self._label_key, _, self._label_entry = (settings.label_key or "").partition(":")
        # The default key may be absent: data without labels are common.
        self._wants_label = settings.label_key not in (None, DEFAULT_LABEL_KEY)
        # Nearly all samples have the same few names.
        self._columns = lru_cache(1000)(self._find_columns)

    def decode(
        self,
        samples: Mapping[int, Sample],
        rows: NDArray[Any],
        bad: decoding.Bad,
        note: decoding.Note = decoding.ignore,
        begin: decoding.Begin = decoding.ignore_group,
    ) -> dict[int, int]:
        """Write the images or arrays of samples into `rows`; return their labels, -1 for none.

        Rows are uint8 or float32 [n, C, H, W]. `bad` receives the errors by row, whose content is
        then undefined; `note` takes labels that cannot be read and what is left out, `begin` the
        rows that are decoded next.
        """
        places = decoding.map_collecting_errors(
            lambda n: self._byte_ranges(*samples[n]), samples, bad
        )
        sizes = {n: sum(size for _, size in each) for n, each in places.items()}
        labels: dict[int, int] = {}
        for group in decoding.batch_by_size(sizes, _BYTES_PER_GROUP):
            begin(group)
            # Read the fields of a group of samples.
            files = decoding.map_collecting_errors(
                lambda n: samples[n][0].read(places[n]), group, bad
            )
            # Decode their images or arrays into the rows.
            images = {n: file[0] for n, file in files.items()}
            if self._only_images and rows.dtype == np.uint8:
                decoding.decode_images(rows, images, self._resize, bad, note, begin)
            else:
                step = partial(self._decode_one, samples, images, rows, note)
                decoding.map_collecting_errors(step, images, bad)
            # Parse their labels.
            good = [n for n in files if n not in bad]
            labels |= {n: self._label(samples[n], files[n], n, note) for n in good}
            del files, images  # or two groups would be held while the next is read
        return labels

    def layout(self, reader: ShardReader, number: int) -> tuple[decoding.Shape, torch.dtype]:
        """Return shape and dtype of the sample's image or array; SampleError if it has none."""
        data = reader.read(self._byte_ranges(reader, number)[:1])[0]
        bad: decoding.Bad = {}
        name, resize, axes = self._image_name(reader, number), self._resize, self._axes
        found = decoding.map_collecting_errors(lambda _: layout(name, data, resize, axes), [0], bad)
        for error in bad.values():
            raise error
        return found[0]

    def _decode_one(
        self,
        samples: Mapping[int, Sample],
        images: Mapping[int, bytes],
        rows: NDArray[Any],
        note: decoding.Note,
        number: int,
    ) -> None:
        name = self._image_name(*samples[number])
        decode_into(
            rows[number],
            name,
            images[number],
            self._resize,
            lambda _, kind, why: note(number, kind, why),
            self._axes,
        )

    def _label(self, sample: Sample, fields: list[bytes], number: int, note: decoding.Note) -> int:
        """Return the label of a sample; its fields are the image and, if any, the label.

        One that cannot be read is none: nothing that trains reads labels.
        """
        if len(fields) == 1:
            if self._wants_label:
                names = ", ".join(sample[0].index.names(sample[1])[1])
                note(number, "entry", f"no {self._label_key!r:.80}; it has {names:.200}")
            return NO_LABEL
        try:
            return parse_label(fields[1], self._label_entry)
        except SampleError as error:
            note(number, "label" if error.reason == "label" else "entry", str(error))
            return NO_LABEL

    def _byte_ranges(self, reader: ShardReader, number: int) -> list[ByteRange]:
        """Return where the sample's image is and, if it has one, its label."""
        index = reader.index  # read once: another thread may replace it
        first, names = index.names(number)
        image, label = self._columns(names)
        place = index.byte_range(first + image)
        if place[1] > MAX_FIELD_BYTES:
            raise SampleError(
                f"a field of {place[1]} bytes; at most {MAX_FIELD_BYTES}", reason="size"
            )
        if label is None:
            return [place]
        start, size = index.byte_range(first + label)
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


def decode_into(
    row: NDArray[Any],
    name: str,
    data: bytes,
    resize: decoding.Resize = decoding.NO_RESIZE,
    note: decoding.Note = decoding.ignore,
    axes: Layout | None = None,
) -> None:
    """Decode an image, or an array (npy, *.npy), into its row, [C, H, W]; SampleError if unfit.

    `axes` are the dimensions of arrays, as in `data.layout`.
    """
    if not is_array(name):
        if row.dtype != np.uint8:
            raise SampleError("an image, wanted a float32 array", reason="array")
        row[:] = decoding.decode_image(data, row.shape, resize, note)  # type: ignore[arg-type]
        return
    array = decode_array(data, axes)
    if array.shape != row.shape or array.dtype != row.dtype:
        raise SampleError(
            f"a {array.dtype} array of shape {array.shape}, wanted {row.dtype} {row.shape}",
            reason="size",
        )
    row[:] = array


def layout(
    name: str, data: bytes, resize: decoding.Resize = decoding.NO_RESIZE, axes: Layout | None = None
) -> tuple[decoding.Shape, torch.dtype]:
    """Return shape [C, H, W] and dtype of the row that this image or array makes by itself."""
    if is_array(name):
        array = torch.from_numpy(decode_array(data, axes).copy())
        return tuple(array.shape), array.dtype
    header = decoding.checked_header(data)
    return (header.channels, *resize.cropped(header.height, header.width)), torch.uint8


def parse_label(data: bytes, entry: str = "") -> int:
    """Return the integer of up to 18 digits in `data`, or in an entry of the JSON object there.

    Raises SampleError, for reason `field` if there is no such entry.
    """
    match = _LABEL.fullmatch(data[:MAX_LABEL_BYTES] if not entry else _json_entry(data, entry))
    if match is None or len(data) > MAX_LABEL_BYTES:
        raise SampleError(f"the label is not an integer (got {data[:40]!r})", reason="label")
    return int(match[1])


def _json_entry(data: bytes, entry: str) -> bytes:
    try:
        document = json.loads(data[:MAX_LABEL_BYTES])
    except (ValueError, RecursionError):
        return b""
    value = document.get(entry) if isinstance(document, dict) else None
    if isinstance(document, dict) and value is None:
        has = ", ".join(map(str, list(document)[:10]))
        raise SampleError(f"no entry {entry!r:.80} (has {has!r:.200})", reason="field")
    if isinstance(value, str):
        return value.encode("utf-8", "replace")[:MAX_LABEL_BYTES]
    is_whole = isinstance(value, float) and value.is_integer()  # 10.0 is what pandas writes
    if isinstance(value, int | float) and (type(value) is int or is_whole) and abs(value) < 10**18:
        return str(int(value)).encode()
    return b""


_DTYPES = ("|u1", "<f4")
_MAX_HEADER_BYTES = 10_000


def channels_first(array: NDArray[Any], axes: Layout) -> NDArray[Any]:
    """Return samples [N, ...] of layout `axes` with their channels behind N, a view."""
    if "C" not in axes:
        return array[:, None]
    return np.moveaxis(array, axes.index("C"), 1)


def decode_array(data: bytes, axes: Layout | None = None) -> NDArray[Any]:
    """Return the finite numbers in a .npy file as uint8 or float32 [C, H, W], a view of `data`.

    Without `axes`, as in `data.layout`, [D] becomes [1, 1, D], and [H, W] becomes [1, H, W]. With
    them it is [C, L], [C, H, W] or [C, D, H, W]. Raises SampleError for any other bytes.
    """
    shape, fortran_order, dtype, start = _header(data)
    if dtype.str not in _DTYPES:
        raise _error(f"the array is of type {dtype.str!r:.80}; uint8 and float32 are read")
    # numpy takes True for a size.
    lengths = (len(axes) - 1,) if axes else (1, 2, 3)
    is_shape = len(shape) in lengths and all(type(size) is int and size > 0 for size in shape)
    if not is_shape:
        wanted_shape = f"data.layout={axes} has {lengths[0]}" if axes else "1 to 3"
        volumes = "" if axes or len(shape) != 4 else "; of volumes say data.layout=NCDHW or NDHWC"
        raise _error(
            f"the array has shape {shape!r:.80}; {wanted_shape} dimensions are read, none "
            f"empty{volumes}"
        )
    # Checked before anything is allocated: a header may claim terabytes.
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(data) - start:
        raise _error(f"the array needs {wanted} bytes and has {len(data) - start}")
    array: NDArray[Any] = np.frombuffer(data, dtype, offset=start)
    array = array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _error("the array has numbers that are not finite")
    if axes:
        array = channels_first(array[None], axes)[0]
    return array.reshape((1,) * (3 - len(shape)) + shape) if not axes else array


def is_array(name: str) -> bool:
    """Return whether the field of this name holds a NumPy array."""
    return name.rpartition(".")[2] == "npy"


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and the byte at which the numbers begin."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # noqa: BLE001 - numpy parses Python literals: any error may come
        raise _error(f"not a .npy array ({str(error)!r:.80})") from None
    if version not in ((1, 0), (2, 0)):
        raise _error(f"a .npy array of version {version}; 1.0 and 2.0 are read")
    return shape, fortran_order, dtype, stream.tell()


def _error(message: str) -> SampleError:
    return SampleError(message, reason="array")
