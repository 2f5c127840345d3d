"""Copies from the host to the device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a CPU tensor on a device, without waiting for the device.

    A copy from pageable memory to a GPU would wait for all that was queued before it.

    Args:
        tensor: Of any shape, in host memory.
        device: Where to.
        dtype: What to become, on the host; by default as it is.
    """
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
