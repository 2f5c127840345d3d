"""Random generators keyed by purpose, never by rank or history; tensors of arrays, on devices."""

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Values: TypeAlias = torch.Tensor | np.typing.NDArray[Any] | Sequence[Any]
"""A tensor, a NumPy array, or a list of either or of numbers."""
SHOWN_SHAPES = 3


def derived_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return 63 bits that depend on the run's seed, the draw's purpose and its keys (a step)."""
    text = "/".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Return a CPU generator for one purpose; the same arguments give the same numbers anywhere."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *keys))


def to_device(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return a CPU tensor on a device, cast on the host, without waiting for the device."""
    # A copy from pageable memory to a GPU would wait for all that was queued before it.
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def one_hot_classes(labels_B: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Return per number of classes in `sizes` one-hot rows, int64 (B, size); zeros for label -1.

    The label numbers the combinations of the classes, the last's changing first, as
    `numpy.ravel_multi_index` does.
    """
    classes = torch.unravel_index(labels_B.clamp(0, math.prod(sizes) - 1), tuple(sizes))
    is_known_B1 = (labels_B >= 0)[:, None]
    each = zip(classes, sizes, strict=True)
    return [torch.nn.functional.one_hot(class_B, size) * is_known_B1 for class_B, size in each]


def as_tensor(name: str, values: Values) -> torch.Tensor:
    """Return a tensor of a tensor, an array, or a list of tensors, arrays or numbers.

    Raises ValueError if it is none of these, its parts differ in shape, torch has no such dtype,
    values are masked, or a tensor is sparse, nested, quantized or without values.
    """
    if isinstance(values, torch.Tensor):
        if values.layout is not torch.strided or values.is_nested or values.is_quantized:
            raise ValueError(f"{name} must be a plain dense tensor, as of to_dense(); got another")
        if values.is_meta:
            raise ValueError(f"{name} must have values; got a tensor on the device meta")
        return values
    if isinstance(values, list | tuple) and any(isinstance(each, torch.Tensor) for each in values):
        parts = [as_tensor(name, each) for each in values]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"{name} must have one shape; got {_listed(shapes)}")
        return torch.stack([part.to(parts[0].device) for part in parts])
    if not isinstance(values, list | tuple) and not hasattr(values, "__array__"):
        raise ValueError(
            f"{name} must be a tensor, an array or a list of them; got {type(values).__name__}"
        )
    each = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in each):
        raise ValueError(f"{name} must have no masked values; fill them, as by filled(0)")
    try:
        array = np.asarray(values)
        # A copy: torch takes no negative strides, and warns of memory that cannot be written.
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except ValueError:  # of lists whose parts differ
        shapes = {np.shape(each) for each in values if not isinstance(each, list | tuple)}
        got = f"; got {_listed(shapes)}" if shapes else ""
        raise ValueError(f"{name} must have one shape{got}") from None
    except TypeError:
        raise ValueError(f"{name} must be numbers; got an array of {array.dtype}") from None


def _listed(shapes: Collection[tuple[int, ...]]) -> str:
    """Return the first shapes, in order."""
    more = f" and {len(shapes) - SHOWN_SHAPES} more" if len(shapes) > SHOWN_SHAPES else ""
    return ", ".join(map(str, sorted(shapes)[:SHOWN_SHAPES])) + more
