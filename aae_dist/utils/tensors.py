"""Random generators keyed by purpose, never by rank or history; copies from host to device."""

import hashlib

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return 63 bits that depend on the run's seed, the draw's purpose and its keys (a step)."""
    text = "/".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Return a CPU generator for one purpose; the same arguments give the same numbers anywhere."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *keys))


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a CPU tensor on a device, cast on the host, without waiting for the device."""
    # A copy from pageable memory to a GPU would wait for all that was queued before it.
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
