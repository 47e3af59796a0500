"""Randomness without state: every number is a function of named integers.

Nothing here has a position to save or to restore, so any process can compute any draw of any epoch, and the same
numbers come out of every NumPy version and CPU (raw bits of Philox, integer arithmetic, no distributions).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def combine(*parts: int | str) -> int:
    """A 64-bit key from integers and texts; a change in any part changes the key."""
    key = 0
    for part in parts:
        number = _text_key(part) if isinstance(part, str) else part
        key = _splitmix(key ^ _splitmix((number + _GOLDEN) & _MASK))
    return key


def raw_bits(key: int, count: int) -> np.ndarray:
    """[count] uint64, uniform over all 64-bit values."""
    return np.random.Philox(key=key).random_raw(count)


def below(bits: np.ndarray, limit: int) -> np.ndarray:
    """Raw bits -> integers 0..limit-1 (int64), equally likely up to limit / 2^32."""
    return ((bits >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def permute(index: np.ndarray | int, size: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(size) sends `index`, without building the permutation.

    A Feistel network over the next even number of bits, walked along its cycle until it lands below `size`.
    (grain has the same tool; importing it imports JAX, and it takes one index at a time.)
    """
    result = np.atleast_1d(np.asarray(index)).astype(np.uint64)
    if result.size and int(result.max()) >= size:
        raise ValueError(f"index {int(result.max())} does not exist in a permutation of {size}")
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = _round_keys(key)
    outside = np.arange(result.size)
    while outside.size:
        left, right = result[outside] >> half, result[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_splitmix_array(right ^ round_key) & low)
        walked = (left << half) | right
        result[outside] = walked
        outside = outside[walked >= size]
    return result.astype(np.int64)


@lru_cache(maxsize=256)
def _text_key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@lru_cache(maxsize=256)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(combine(key, r)) for r in range(_ROUNDS))


def _splitmix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _splitmix_array(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
