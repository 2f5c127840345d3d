"""NumPy arrays to pack: images, vectors or volumes of numbers, with labels."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.pack.sources import Fields, PackOptions, PackSource, image_fields, sets_of, split
from aae_dist.errors import DataError
from aae_dist.utils.arrays import npy_bytes

Array = NDArray[Any]
MAGIC = b"\x93NUMPY"
"""First bytes of a .npy file."""


def npy_source(file: Path, options: PackOptions) -> PackSource:
    """Return the rows of an array, which is memory-mapped.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 are images, written as PNG.
    Other arrays, such as [N, D], are written as float32 in the field `npy`.

    Raises:
        DataError: There is no such array, or it does not fit its labels.
    """
    rows = _load(file)
    if rows.ndim < 2 or rows.ndim > 4 or rows.dtype.kind not in "uif" or not len(rows):
        raise DataError(
            f"{file}: an array of numbers with 2 to 4 dimensions is wanted, rows first "
            f"(got {rows.dtype} {rows.shape})."
        )
    labels = _labels(options.labels, len(rows))
    images = rows.dtype == np.uint8 and rows.ndim > 2

    def sample(place: int, number: int) -> Fields:
        label = None if labels is None else int(labels[number])
        if images:
            return image_fields(place, _image(rows[number], file), label, options)
        return _array_fields(place, rows[number], label, f"{file}, row {number}")

    return PackSource(sets_of(split([str(n) for n in range(len(rows))], options), sample))


def _load(file: Path) -> Array:
    try:
        loaded: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror or 'damaged'}); give the path of a .npy file."
        ) from None
    except (ValueError, EOFError):
        raise DataError(f"{file}: {_why_not(file)}; write it with numpy.save.") from None
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{file}: an archive; give a .npy file, which holds one array.")
    return loaded


def _why_not(file: Path) -> str:
    """Return why NumPy cannot read a file; its own message advises to unpickle it."""
    with file.open("rb") as opened:
        is_array = opened.read(len(MAGIC)) == MAGIC
    return "damaged, or an array of objects, not of numbers" if is_array else "not a .npy file"


def _labels(file: Path | None, num_rows: int) -> Array | None:
    if file is None:
        return None
    labels = _load(file)
    if labels.shape != (num_rows,) or labels.dtype.kind not in "ui":
        raise DataError(
            f"{file}: {num_rows} whole numbers are wanted, one for each row "
            f"(got {labels.dtype} {labels.shape})."
        )
    return labels


def _image(row: Array, file: Path) -> Array:
    """Return pixels [H, W] or [H, W, 3]."""
    if row.ndim == 3 and row.shape[-1] not in (1, 3) and row.shape[0] in (1, 3):
        row = row.transpose(1, 2, 0)
    if row.ndim == 3 and row.shape[-1] not in (1, 3):
        raise DataError(
            f"{file}: images need 1 or 3 channels (got rows of {row.shape}); give other arrays as "
            "float32 in [0, 1] with the channels first."
        )
    return np.ascontiguousarray(row[..., 0] if row.ndim == 3 and row.shape[-1] == 1 else row)


def _array_fields(place: int, row: Array, label: int | None, name: str) -> Fields:
    numbers = np.asarray(row, "<f4")
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: has numbers that are not finite; remove them.")
    fields: Fields = {"__key__": f"{place:08d}", "npy": npy_bytes(numbers)}
    return fields if label is None else {**fields, "cls": str(label).encode()}
