"""What Python users hand over as data, checked and in the one form that training reads."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.config.sections.run import Layout
from aae_dist.data.arrays import Arrays, SparseRows
from aae_dist.data.decode.sample import NO_LABEL, channels_first
from aae_dist.errors import DataError
from aae_dist.utils.arrays import stratified

MEMORY_FRACTION = 0.5
"""Largest part of the machine's free memory that a Dataset may take."""
COLOURS = (1, 3, 4)
LAYOUTS = get_args(Layout)


def as_arrays(data: Any, layout: Layout | None = None, name: str = "data") -> Arrays:
    """Return samples in memory.

    Args:
        data: `x` or `(x, y)`, arrays or tensors; or a `torch.utils.data.Dataset` of known length
            whose samples are `x` or `(x, y)`, which is read once. x are uint8 or floats: images (N,
            C, H, W), (N, H, W, C) or (N, H, W); signals; volumes; or vectors, floats (N, D), also
            as a sparse matrix of SciPy. Floats are kept as float32. y are integers (N), -1 for no
            label.
        layout: what each dimension of x is, as in `data.layout`. Signals and volumes need it;
            images of 4 dimensions are NCHW by default, as in torch.
        name: the argument's name, for errors.

    Raises:
        DataError: in one line, what is wrong with the data and what to do.
    """
    if layout not in (None, *LAYOUTS):
        raise DataError(f"layout: should be one of {', '.join(LAYOUTS)} (got {layout!r})")
    if isinstance(data, Arrays):
        return data
    if _is_dataset(data):
        x, y = _read(data, name)
    elif isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(f"{name}: a tuple is (x, y) (got {len(data)} parts)")
        x, y = data
    else:
        x, y = data, None
    if is_sparse(x):
        rows = _sparse(x, name)
        return Arrays(rows, _labels(y, len(rows), name))
    images = _images(_numbers(x, name), layout, name)
    return Arrays(images, _labels(y, len(images), name))


def halves(arrays: Arrays, fraction: float) -> tuple[Arrays, Arrays]:
    """Return training and validation samples: for validation one of each k, k = 1/fraction.

    Which one is drawn, always the same: see `stratified`.

    Raises:
        DataError: the fraction is not in (0, 1), or a part would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"validation: a fraction must be between 0 and 1 (got {fraction})")
    total = len(arrays.images)
    count = round(total * fraction)
    if not 0 < count < total:
        raise DataError(f"validation: {fraction} of {total} samples leaves a part empty")
    chosen = np.zeros(total, np.bool_)
    chosen[stratified(count, total)] = True
    return (
        Arrays(arrays.images[~chosen], arrays.labels[~chosen], arrays.classes),
        Arrays(arrays.images[chosen], arrays.labels[chosen], arrays.classes),
    )


def is_sparse(x: Any) -> bool:
    """Return whether x is a sparse matrix or array of SciPy."""
    return hasattr(x, "tocsr") and hasattr(x, "nnz")


def _sparse(x: Any, name: str) -> SparseRows:
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name}: a sparse x has shape (N, D), not empty (got {x.shape})")
    rows = SparseRows(x)
    if not np.isfinite(rows.rows.data).all():
        raise DataError(f"{name}: x has numbers that are not finite; remove or fill them")
    return rows


def _is_dataset(data: Any) -> bool:
    if isinstance(data, torch.utils.data.IterableDataset):
        return True
    return isinstance(data, torch.utils.data.Dataset)


def _numbers(x: Any, name: str) -> NDArray[Any]:
    """Return x as an array; DataError for what is none."""
    if isinstance(x, torch.utils.data.DataLoader):
        raise DataError(
            f"{name}: a DataLoader has an order and batches of its own, and training has its own; "
            "give its samples, loader.dataset"
        )
    if isinstance(x, torch.Tensor) and x.layout is not torch.strided:
        raise DataError(f"{name}: x is a tensor of layout {x.layout}; give x.to_dense()")
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(f"{name}: some values of x are masked; fill them, for instance x.filled(0)")
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        array: NDArray[Any] = x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
        return array
    if isinstance(x, Iterator) or (hasattr(x, "__iter__") and not hasattr(x, "__len__")):
        raise DataError(
            f"{name}: a {type(x).__name__} can be read only once, and training reads it in another "
            "order each epoch; give an array, a tensor or a Dataset of known length"
        )
    if isinstance(x, list | tuple) and any(isinstance(each, torch.Tensor) for each in x):
        x = [each.detach().cpu().numpy() if isinstance(each, torch.Tensor) else each for each in x]
    if not (hasattr(x, "__array__") or isinstance(x, list | tuple)):
        is_place = isinstance(x, str | os.PathLike)
        place = "; name shards as data.train of the configuration" if is_place else ""
        raise DataError(
            f"{name}: x or (x, y), arrays or tensors, or a torch Dataset are trained on (got "
            f"{type(x).__name__}){place}"
        )
    try:
        array = np.asarray(x)
        if array.dtype == object and array.size and not _holds_values(x, array):
            array = np.stack(list(array))  # arrays of one shape, in an array
    except ValueError:
        raise DataError(f"{name}: {_ragged(x)}") from None
    return array


def _holds_values(x: Any, array: NDArray[Any]) -> bool:
    """Return whether an array of objects holds text or the like, rather than arrays."""
    parts = (np.ndarray, list, tuple)
    return hasattr(x, "__array__") and not any(isinstance(each, parts) for each in array.flat)


def _ragged(x: Any) -> str:
    """Describe samples that do not fit into one array, and what to do."""
    shapes = [np.shape(each) for each in x if hasattr(each, "shape")]
    if isinstance(x, list) and len(shapes) == 2 and shapes[0][:1] == shapes[1][:1] != ():
        return "a list holds samples; give x and y as a tuple, (x, y)"
    if isinstance(x, list) and x and all(isinstance(each, tuple) for each in x):
        return "a list of tuples is not read; give (x, y), all samples and all labels"
    odd = next((each for each in x if not hasattr(each, "shape") and np.ndim(each) == 0), None)
    if odd is not None:
        return f"samples should be arrays of numbers (got {type(odd).__name__} {str(odd)!r:.40})"
    known = sorted(set(shapes))[:2]
    such = f" (such as {' and '.join(map(str, known))})" if len(known) > 1 else ""
    return (
        f"the samples differ in shape{such}; bring them to one, for images by resizing or cropping "
        "them"
    )


def _images(x: NDArray[Any], layout: Layout | None, name: str) -> NDArray[Any]:
    """Return uint8 or float32 (N, C, H, W), (N, C, L) or (N, C, D, H, W)."""
    shape = x.shape
    if x.dtype.kind in "OUSM" and x.size:
        for odd in (each for each in x.flat if not isinstance(each, int | float | np.number)):
            raise DataError(
                f"{name}: x should hold numbers (got {type(odd).__name__} {str(odd)!r:.40}); leave "
                "such columns out, or turn them into numbers"
            )
    if 0 in shape:
        raise DataError(f"{name}: x is empty (got shape {shape})")
    if x.ndim < 2 or x.ndim > 5:
        raise DataError(
            f"{name}: x should be vectors (N, D), images (N, H, W), (N, C, H, W) or (N, H, W, C), "
            f"or signals or volumes with a layout said (got shape {shape})"
        )
    is_float = np.issubdtype(x.dtype, np.floating)
    if x.dtype != np.uint8 and not is_float:
        raise DataError(
            f"{name}: x should be uint8 (pixels 0 to 255) or floats (got {x.dtype}); convert it, "
            f"for instance {_converted(x)}"
        )
    if x.ndim == 2 and not is_float and layout is None:
        raise DataError(
            f"{name}: x of shape {shape} are vectors, which should be floats (got uint8); convert "
            "it, give images (N, H, W), or say layout='NL' if they are signals"
        )
    x = _channels_first(x, layout, name)
    if is_float:
        with np.errstate(over="ignore"):  # then infinite, and reported below
            x = x.astype(np.float32, copy=False)
        x = _finite(x, name)
    return np.ascontiguousarray(x)


def _converted(x: NDArray[Any]) -> str:
    """Return the expression that makes numbers of another type fit."""
    if x.ndim < 3 or x.dtype.kind not in "iu":
        return "x.astype('float32')"
    if x.min() >= 0 and x.max() <= 255:
        return "x.astype('uint8')"
    return "(x / x.max()).astype('float32')"


def _channels_first(x: NDArray[Any], layout: Layout | None, name: str) -> NDArray[Any]:
    if layout is None and x.ndim == 2:
        return x[:, None, None, :]
    if layout is None and x.ndim == 5:
        raise DataError(
            f"{name}: x of shape {x.shape} are volumes; say layout='NCDHW' or layout='NDHWC'"
        )
    if layout is None and x.ndim == 3 and (len(x) in (3, 4) or x.shape[-1] in (3, 4)):
        raise DataError(
            f"{name}: x of shape {x.shape} may be one image in colour; give images (N, C, H, W), "
            "or say layout='NHW' if each is grey"
        )
    here: Layout = layout or ("NHW" if x.ndim == 3 else "NCHW")
    if x.ndim != len(here):
        raise DataError(
            f"{name}: layout={here!r} has {len(here)} dimensions, and x has shape {x.shape}; say "
            "what each dimension is: N samples, C channels, L of signals, D H W"
        )
    if "C" not in here:
        return channels_first(x, here)
    first, last = x.shape[1], x.shape[-1]
    channels, other = (first, last) if here[1] == "C" else (last, first)
    if channels not in COLOURS and other in COLOURS:
        sides = here.replace("C", "")[1:]
        wanted = f"N{sides}C" if here[1] == "C" else f"NC{sides}"
        said = f"layout={layout!r} was said" if layout else "NCHW is the default"
        raise DataError(
            f"{name}: x of shape {x.shape} looks like {wanted} ({said}, which would be {channels} "
            f"channels); say layout={wanted!r}"
        )
    if channels == 4 and x.dtype == np.uint8 and layout is None:
        raise DataError(
            f"{name}: x has 4 channels, of which the last may be alpha; give x[:, :3], or say "
            "layout='NCHW' if it is none"
        )
    return channels_first(x, here)


def _finite(x: NDArray[Any], name: str) -> NDArray[Any]:
    good = np.isfinite(x).reshape(len(x), -1).all(1)
    if not good.all():
        bad = np.flatnonzero(~good)
        raise DataError(
            f"{name}: {len(bad)} of {len(x)} samples have numbers that are not finite (NaN, or "
            f"infinite as float32), the first is sample {bad[0]}; remove or fill them"
        )
    return x


def _labels(y: Any, total: int, name: str) -> NDArray[np.int64]:
    if y is None:
        return np.full(total, NO_LABEL, np.int64)
    labels = np.asarray(y) if np.isscalar(y) else _numbers(y, f"{name}, labels")
    if labels.shape != (total,):
        is_table = labels.ndim == 2 and len(labels) == total
        of_table = "y[:, 0]" if labels.shape[1:] == (1,) else "y.argmax(1) of one-hot labels"
        raise DataError(
            f"{name}: {total} samples need {total} labels, of shape ({total},) (got shape "
            f"{labels.shape})" + (f"; give {of_table}" if is_table else "")
        )
    if not np.issubdtype(labels.dtype, np.integer):
        is_text = labels.dtype.kind not in "fb"
        number = "np.unique(y, return_inverse=True)[1]" if is_text else "y.astype(int)"
        raise DataError(
            f"{name}: labels should be integers (got {'text' if is_text else labels.dtype}); "
            f"number the classes, -1 for no label, for instance by {number}"
        )
    labels = labels.astype(np.int64)
    if labels.min(initial=0) < NO_LABEL:
        raise DataError(f"{name}: labels should be 0 or more, -1 for none (got {labels.min()})")
    return labels


def _read(data: Any, name: str) -> tuple[Sequence[Any] | NDArray[Any], Any]:
    """Return all samples of a Dataset, read once, and its labels, None without any."""
    try:
        total = len(data)
    except (TypeError, NotImplementedError):
        raise DataError(
            f"{name}: {type(data).__name__} has no length; give a Dataset with __len__ and "
            "__getitem__, or write the samples as shards"
        ) from None
    if not total:
        raise DataError(f"{name}: {type(data).__name__} has no samples")
    first, has_label = _sample(data, 0, None, name)
    num_bytes, free = total * first.nbytes, _free_bytes()
    if num_bytes > MEMORY_FRACTION * free:
        raise DataError(
            f"{name}: {total} samples of {type(data).__name__} take {num_bytes / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB of memory are free; write them as shards (aae-dist data)"
        )
    x = np.empty((total, *first.shape), first.dtype)
    labels = []
    for number in range(total):
        image, label = _sample(data, number, has_label is not None, name)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{name}: the samples differ: {first.dtype} {first.shape} and, sample {number}, "
                f"{image.dtype} {image.shape}; bring them to one shape and type"
            )
        x[number] = image
        labels.append(label)
    return x, None if has_label is None else labels


def _sample(
    data: Any, number: int, labelled: bool | None, name: str
) -> tuple[NDArray[Any], int | None]:
    sample = data[number]
    if isinstance(sample, Mapping):
        raise DataError(
            f"{name}: samples are x or (x, y), and sample {number} is a {type(sample).__name__} "
            f"with {', '.join(map(str, list(sample)[:5]))}; return two of its values"
        )
    label = None
    if isinstance(sample, tuple | list):
        sample, label = (*sample, None)[:2]
    if labelled is not None and labelled != (label is not None):
        raise DataError(f"{name}: some samples have a label and some have none, as {number}")
    # asanyarray: a masked array stays one, and is refused.
    array = _numbers(
        np.asanyarray(sample) if not isinstance(sample, torch.Tensor) else sample, name
    )
    try:
        found = None if label is None else int(label)
        is_whole = label is None or found == float(label)
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise DataError(f"{name}: the label of sample {number} is no integer (got {label!r:.40})")
    return array, found


def _free_bytes() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return math.inf
