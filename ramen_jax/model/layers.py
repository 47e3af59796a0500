"""The two layers everything is made of, with the official initialisation, and a loop that bounds memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# PyTorch's default for a linear layer: weight and bias uniform in +-1/sqrt(fan_in). RAMEN changes nothing of it.
KERNEL_INIT = nnx.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Any = None) -> nnx.Linear:
    """A linear layer [..., inputs] -> [..., outputs]; parameters float32, computed in `dtype`."""
    bound = inputs**-0.5

    def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=KERNEL_INIT, bias_init=bias_init, dtype=dtype, rngs=rngs)


def bias_of(layer: nnx.Linear) -> jax.Array:
    """The bias of a layer that `linear` built: it always has one."""
    assert layer.bias is not None
    return layer.bias[...]


def layer_norm(features: int, eps: float, *, rngs: nnx.Rngs, gain: float = 1.0) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in float32, statistics by the two-pass formula; its scale begins at `gain`."""
    begin = nnx.initializers.constant(gain)
    return nnx.LayerNorm(features, epsilon=eps, use_fast_variance=False, scale_init=begin, rngs=rngs)


def in_pieces(x: jax.Array) -> jax.Array:
    """[R, ..., D] -> [R, P, Q, D] with P and Q near the square root of their product, padded with zeros.

    A float32 sum over the Q and then the P entries carries a rounding error that grows with P + Q instead of
    P * Q: statistics over a hundred thousand entries stay exact to the last digits.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    size = math.isqrt(flat.shape[1] - 1) + 1
    pieces = -(-flat.shape[1] // size)
    padded = jnp.pad(flat, [(0, 0), (0, pieces * size - flat.shape[1]), (0, 0)])
    return padded.reshape(x.shape[0], pieces, size, x.shape[-1])


def sum_entries(x: jax.Array) -> jax.Array:
    """[R, ..., D] -> [D]: the sum over all entries, in pieces."""
    return jnp.sum(jnp.sum(jnp.sum(in_pieces(x), axis=2), axis=1), axis=0)


def in_chunks(
    function: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    *,
    values_per_item: int,
    limit: int,
    shards: int = 1,
) -> jax.Array:
    """`function(*arrays)` along axis 1, at most `limit` intermediate values per device at a time, recomputed backward.

    `arrays` are [R, N, ...]; the function must treat the N items apart. `values_per_item` is the number of
    intermediate values one item of one row needs. A short series at a coarse GSD runs in one piece. The R rows are
    split over `shards` devices: the pieces follow from what one device holds, however many there are.
    """
    rows, items = arrays[0].shape[:2]
    pieces = -(-rows * items * values_per_item // (limit * shards))
    if pieces <= 1:
        return function(*arrays)
    size = -(-items // pieces)
    pieces = -(-items // size)
    padding = pieces * size - items

    def split(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, pieces, size, *array.shape[2:]), 1, 0)

    result = jax.lax.map(lambda chunk: jax.checkpoint(function)(*chunk), tuple(split(a) for a in arrays))
    return jnp.moveaxis(result, 0, 1).reshape(rows, pieces * size, *result.shape[3:])[:, :items]
