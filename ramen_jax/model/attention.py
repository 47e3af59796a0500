"""One attention function for every backend: `attention(q, k, v, segment_ids)`.

Tokens attend to the tokens of their own segment. Segment 0 is padding and attends to itself only, so no row of
scores is ever fully masked and no gradient crosses a segment: foreign gradients are exactly zero.

Two ways, same results to rounding. `dense` forms all scores, best for short rows. `blockwise` takes a block of
queries at a time against all keys and recomputes the scores in its own backward pass, so memory grows with the
row length and not with its square.

Shape letters: B rows, L tokens, H heads, D head width, Q queries of one block.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

DENSE_SCORES = 1 << 24  # above this many scores the blockwise way is taken
BLOCK_SCORES = 1 << 24  # scores that one block may hold
MASKED = -1e30


def attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Softmax attention within segments.

    Args:
        q, k, v: [B, L, H, D], any float dtype; scores and softmax are float32.
        segment_ids: [B, L] int32, or None when every token belongs to one segment.

    Returns:
        [B, L, H, D] in the dtype of v.
    """
    batch, length, heads, _ = q.shape
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    if batch * heads * length * length <= DENSE_SCORES:
        return _dense(q, k, v, segment_ids)
    return _blockwise(q, k, v, segment_ids)


def _scores(q: jax.Array, k: jax.Array, segments_q: jax.Array, segments_k: jax.Array) -> jax.Array:
    """[B, H, Q, L] float32 scores, foreign segments masked."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    same = segments_q[:, None, :, None] == segments_k[:, None, None, :]
    return jnp.where(same, scores, MASKED)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(_scores(q, k, segment_ids, segment_ids), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def _block_size(batch: int, heads: int, length: int) -> int:
    return max(1, min(length, BLOCK_SCORES // (batch * heads * length)))


def _split(array: jax.Array, size: int, fill: int = 0) -> jax.Array:
    """[B, L, ...] -> [blocks, B, size, ...], the last block padded."""
    blocks = -(-array.shape[1] // size)
    padding = [(0, 0), (0, blocks * size - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    padded = jnp.pad(array, padding, constant_values=fill)
    return jnp.moveaxis(padded.reshape(array.shape[0], blocks, size, *array.shape[2:]), 1, 0)


def _join(blocks: jax.Array, length: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=())
def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return _forward(q, k, v, segment_ids)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch, length, heads, _ = q.shape
    size = _block_size(batch, heads, length)

    def one(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = _scores(block[0], k, block[1], segment_ids)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("bhqk,bkhd->bqhd", (weights / total).astype(v.dtype), v)
        return out, jnp.moveaxis((top + jnp.log(total))[..., 0], 1, 2)

    out, log_total = jax.lax.map(one, (_split(q, size), _split(segment_ids, size)))
    return _join(out, length), _join(log_total, length)


def _blockwise_forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple:
    out, log_total = _forward(q, k, v, segment_ids)
    return out, (q, k, v, segment_ids, out, log_total)


def _blockwise_backward(saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, segment_ids, out, log_total = saved
    batch, length, heads, width = q.shape
    size = _block_size(batch, heads, length)
    dot_BxLxH = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    # A padded query has an infinite normaliser: its weights vanish and it adds nothing to any gradient.
    normaliser = _split(
        jnp.pad(log_total, [(0, 0), (0, (-length) % size), (0, 0)], constant_values=jnp.inf), size
    )

    def one(
        carry: tuple[jax.Array, jax.Array], block: tuple
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        grad_k, grad_v = carry
        q_block, segments, grad_block, dot, log_total_block = block
        scores = _scores(q_block, k, segments, segment_ids)
        weights = jnp.exp(scores - jnp.moveaxis(log_total_block, 1, 2)[..., None])
        grad_v += jnp.einsum(
            "bhqk,bqhd->bkhd", weights.astype(v.dtype), grad_block, preferred_element_type=jnp.float32
        )
        grad_weights = jnp.einsum("bqhd,bkhd->bhqk", grad_block, v, preferred_element_type=jnp.float32)
        grad_scores = weights * (grad_weights - jnp.moveaxis(dot, 1, 2)[..., None]) * width**-0.5
        grad_scores = grad_scores.astype(q.dtype)
        grad_k += jnp.einsum("bhqk,bqhd->bkhd", grad_scores, q_block, preferred_element_type=jnp.float32)
        grad_q = jnp.einsum("bhqk,bkhd->bqhd", grad_scores, k, preferred_element_type=jnp.float32)
        return (grad_k, grad_v), grad_q

    zeros = jnp.zeros(k.shape, jnp.float32)
    blocks = (
        _split(q, size),
        _split(segment_ids, size),
        _split(grad, size),
        _split(dot_BxLxH, size),
        normaliser,
    )
    (grad_k, grad_v), grad_q = jax.lax.scan(one, (zeros, zeros), blocks)
    return _join(grad_q, length).astype(q.dtype), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
