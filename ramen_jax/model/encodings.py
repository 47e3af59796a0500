"""Sine-cosine encodings of physical quantities, in float32 and in the official order of operations.

Phases reach 2,000 radians (wavelengths in nanometres, metres, days), so a last-bit change of a frequency is
visible in the fourth decimal: frequencies are formed in float32 exactly as the official code forms them
(pos_embed.py, ltae.py) and never in lower precision. The option `encodings: bfloat16` rounds position and
frequency to bfloat16 first, to study what automatic mixed precision did to the published weights.

Shape letters: ... any leading axes, D channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BASE = 10000.0
PERIOD_DAYS = 367.0
PRECISIONS = ("float32", "bfloat16")


def frequencies(dim: int) -> np.ndarray:
    """1 / 10000^(i / (D/2)) for i = 0..D/2-1: [D/2] float32."""
    exponent = np.arange(dim // 2, dtype=np.float32) / np.float32(dim / 2.0)
    return np.float32(1.0) / _power(BASE, exponent)


def date_denominators(dim: int) -> np.ndarray:
    """367^(2 (i // 2) / D) for i = 0..D-1: [D] float32."""
    return _power(PERIOD_DAYS, (2 * (np.arange(dim) // 2)).astype(np.float32) / np.float32(dim))


def _power(base: float, exponent: np.ndarray) -> np.ndarray:
    """base ** exponent as the float32 nearest to the exact power, whatever the CPU.

    NumPy's own float32 power is off by a last bit where it runs on AVX-512, and exact elsewhere.
    """
    return np.power(np.float64(base), exponent.astype(np.float64)).astype(np.float32)


def sincos(position: jax.Array, dim: int, precision: str = "float32") -> jax.Array:
    """[...] positions (nm, log ratio, metres or days) -> [..., D] float32, all sines then all cosines."""
    omega = jnp.asarray(frequencies(dim))
    position = jnp.asarray(position, jnp.float32)[..., None]
    omega = omega.reshape((1,) * (position.ndim - 1) + omega.shape)
    if precision == "bfloat16":
        phase = (position.astype(jnp.bfloat16) * omega.astype(jnp.bfloat16)).astype(jnp.float32)
    else:
        phase = position * omega
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def sincos_2d(coords: jax.Array, dim: int, precision: str = "float32") -> jax.Array:
    """[..., 2] metres (x, y) -> [..., D]: the first half encodes the column (x), the second the row (y)."""
    return jnp.concatenate(
        [sincos(coords[..., 0], dim // 2, precision), sincos(coords[..., 1], dim // 2, precision)], axis=-1
    )


def date_encoding(dates: jax.Array, dim: int) -> jax.Array:
    """[...] days of year -> [..., D] float32, interleaved sine and cosine with period 367 (ltae.py)."""
    denominator = jnp.asarray(date_denominators(dim))
    dates = jnp.asarray(dates, jnp.float32)[..., None]
    angle = dates / denominator.reshape((1,) * (dates.ndim - 1) + (dim,))
    even = jnp.asarray(np.arange(dim) % 2 == 0).reshape((1,) * (dates.ndim - 1) + (dim,))
    return jnp.where(even, jnp.sin(angle), jnp.cos(angle))
