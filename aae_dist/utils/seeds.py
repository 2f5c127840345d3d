"""Random generators keyed by purpose, never by rank, worker or history."""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return 63 bits that depend on the run's seed, the draw's purpose and its keys (a step)."""
    text = "/".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Return a CPU generator for one purpose; the same arguments give the same numbers anywhere."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *keys))
