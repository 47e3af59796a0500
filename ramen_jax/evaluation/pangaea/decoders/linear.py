"""Linear probes: one dense layer on the last level's tokens, or on the mean of all levels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.evaluation.pangaea.decoders.layers import Dense, Size, resize


class LinearSegmentation(nnx.Module):
    """Last level [B, h, w, D] -> [B, H, W, outputs] float32, interpolated after the dense layer."""

    def __init__(self, widths: Sequence[int], outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.head = Dense(widths[-1], outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, levels: Sequence[jax.Array], size: Size, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        del train, key
        return resize(self.head(levels[-1]).astype(jnp.float32), size)


class LinearClassification(nnx.Module):
    """All levels [B, h, w, D_i] -> [B, outputs] float32; the size of a label map has no meaning here."""

    def __init__(self, widths: Sequence[int], outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.head = Dense(sum(widths), outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, levels: Sequence[jax.Array], size: Size, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        del size, train, key
        return self.head(pooled(levels)).astype(jnp.float32)


def pooled(levels: Sequence[jax.Array]) -> jax.Array:
    """Levels [B, h, w, D_i], resized to the largest grid, joined and averaged: [B, sum of D_i] float32."""
    grid = (max(level.shape[1] for level in levels), max(level.shape[2] for level in levels))
    joined = jnp.concatenate([resize(level, grid) for level in levels], axis=-1)
    return jnp.mean(joined.astype(jnp.float32), axis=(1, 2))
