"""Keyed permutations of 0..n-1 that need no memory: a Feistel network with cycle walking.

Only integer operations on uint64 are used and the keys come from BLAKE2b, so no library upgrade
can change an order; golden vectors in the tests hold it fixed. Any element costs the same,
whatever n is.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]

_NUM_ROUNDS = 8
"""BLAKE2b gives 64 bytes, one 8-byte key per round: twice as many as no measurable bias needs."""
_MIN_BITS = 6
"""Halves of one or two bits give too few permutations: sizes 3 to 7 were measurably uneven."""


def round_keys(*parts: int | str) -> tuple[np.uint64, ...]:
    """Return the round keys of `parts`, for example (seed, "epoch", 3)."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return tuple(np.frombuffer(digest, "<u8"))


def permute(positions: Indices, size: int, keys: tuple[np.uint64, ...]) -> Indices:
    """Return the images of `positions` under the permutation of 0..size-1 that `keys` choose.

    Args:
        positions: Any number of integers in [0, size), int64, any shape.
        size: Length of the permuted range, at least 1.
        keys: From `round_keys`.
    """
    if size == 1:
        return np.zeros_like(positions)
    num_bits = max(_MIN_BITS, (size - 1).bit_length())
    words = _encrypt(np.ascontiguousarray(positions).ravel().astype(np.uint64), num_bits, keys)
    # Cycle walking: a word outside is encrypted again until it is inside. From size 33 on
    # the domain is less than twice the size, so the expected number of extra turns is below one.
    outside = np.flatnonzero(words >= np.uint64(size))
    while outside.size:
        words[outside] = _encrypt(words[outside], num_bits, keys)
        outside = outside[words[outside] >= np.uint64(size)]
    return words.astype(np.int64).reshape(positions.shape)


def _encrypt(words: _Words, num_bits: int, keys: tuple[np.uint64, ...]) -> _Words:
    low_bits = num_bits // 2
    shift = np.uint64(low_bits)
    low_mask = np.uint64((1 << low_bits) - 1)
    high_mask = np.uint64((1 << (num_bits - low_bits)) - 1)
    low, high = words & low_mask, words >> shift
    for number, key in enumerate(keys):
        # Halves may differ in width by one bit, so they take turns instead of swapping places.
        if number % 2:
            high ^= mixed(low ^ key) & high_mask
        else:
            low ^= mixed(high ^ key) & low_mask
    return (high << shift) | low


def mixed(words: _Words) -> _Words:
    """Mix all bits into all bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
