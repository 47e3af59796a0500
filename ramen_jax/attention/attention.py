"""One attention function for every backend: `attention(q, k, v, segment_ids)`.

Tokens attend to the tokens of their own segment. Segment 0 is padding and attends to itself only, so no row of
scores is ever fully masked and no gradient crosses a segment: foreign gradients are exactly zero.

Two ways, same results to rounding. `dense` forms all scores, best for short rows. `blockwise` takes a block of
queries at a time against all keys and recomputes the scores in its own backward pass, so memory grows with the
row length and not with its square. On a CPU a block is one head's and stays in the cache, which makes it 2.3 times
faster than blocks of all heads (3,073 tokens, 16 heads of 32, forward).

Shape letters: B rows, L tokens, H heads, D head width; in the blockwise part also N = B * H, G heads of one group,
Q queries of one block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

DENSE_LENGTH = 128  # longer rows take the blockwise way: already at 401 tokens it is twice as fast on a CPU
BLOCK_SCORES = {"cpu": 1 << 20}  # scores that one block may hold, by backend
BLOCK_SCORES_ELSEWHERE = 1 << 26
MASKED = -1e30
SAVED = "attention"  # what rematerialisation keeps, so that it never repeats the attention itself


def attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Softmax attention within segments.

    Args:
        q, k, v: [B, L, H, D], any float dtype; scores and softmax are float32.
        segment_ids: [B, L] int32, or None when every token belongs to one segment.

    Returns:
        [B, L, H, D] in the dtype of v.
    """
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    if q.shape[1] <= DENSE_LENGTH:
        return _dense(q, k, v, segment_ids)
    return _blockwise(q, k, v, segment_ids)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    weights = jax.nn.softmax(_scores(q, k, segment_ids[:, None], segment_ids[:, None]), axis=-1)
    return jnp.moveaxis(jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v), 1, 2)


def _scores(q: jax.Array, k: jax.Array, segments_q: jax.Array, segments_k: jax.Array) -> jax.Array:
    """[..., Q, D] and [..., L, D] -> [..., Q, L] float32 scores, foreign segments masked."""
    scores = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(segments_q[..., :, None] == segments_k[..., None, :], scores, MASKED)


@jax.custom_vjp
def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return _forward(q, k, v, segment_ids)[0]


def _groups(array: jax.Array) -> jax.Array:
    """[B, L, H, ...] -> [N / G, G, L, ...]: one head at a time on a CPU, all heads at once elsewhere."""
    heads = jnp.moveaxis(array, 2, 1).reshape(-1, array.shape[1], *array.shape[3:])
    group = 1 if jax.default_backend() == "cpu" else heads.shape[0]
    return heads.reshape(-1, group, *heads.shape[1:])


def _ungroup(array: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_groups`."""
    heads = array.reshape(batch, -1, *array.shape[2:])
    return jnp.moveaxis(heads, 1, 2)


def _head_segments(segment_ids: jax.Array, heads: int) -> jax.Array:
    return jnp.broadcast_to(segment_ids[:, :, None], (*segment_ids.shape, heads))


def _block_size(group: int, length: int) -> int:
    scores = BLOCK_SCORES.get(jax.default_backend(), BLOCK_SCORES_ELSEWHERE)
    return max(1, min(length, scores // (group * length)))


def _split(array: jax.Array, size: int, fill: float = 0) -> jax.Array:
    """[G, L, ...] -> [blocks, G, Q, ...], the last block padded."""
    blocks = -(-array.shape[1] // size)
    padding = [(0, 0), (0, blocks * size - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    padded = jnp.pad(array, padding, constant_values=fill)
    return jnp.moveaxis(padded.reshape(array.shape[0], blocks, size, *array.shape[2:]), 1, 0)


def _join(blocks: jax.Array, length: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, L, H, D] output and [B, L, H] logarithm of each query's normaliser."""
    batch, length, heads, _ = q.shape

    def group(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, segments = inputs
        size = _block_size(q.shape[0], length)

        def block(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            scores = _scores(inputs[0], k, inputs[1], segments)
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
            return out.astype(v.dtype), (top + jnp.log(total))[..., 0]

        out, log_total = jax.lax.map(block, (_split(q, size), _split(segments, size)))
        return _join(out, length), _join(log_total, length)

    segments = _head_segments(segment_ids, heads)
    out, log_total = jax.lax.map(group, tuple(_groups(x) for x in (q, k, v, segments)))
    return _ungroup(out, batch), _ungroup(log_total, batch)


def _blockwise_forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple:
    out, log_total = (checkpoint_name(x, SAVED) for x in _forward(q, k, v, segment_ids))
    return out, (q, k, v, segment_ids, out, log_total)


def _blockwise_backward(saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, segment_ids, out, log_total = saved
    batch, length, heads, width = q.shape
    dot = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def group(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, segments, grad, dot, log_total = inputs
        size = _block_size(q.shape[0], length)

        def block(carry: tuple[jax.Array, jax.Array], inputs: tuple) -> tuple[tuple, jax.Array]:
            grad_k, grad_v = carry
            q, segments_q, grad, dot, log_total = inputs
            weights = jnp.exp(_scores(q, k, segments_q, segments) - log_total[..., None])
            transposed = jnp.swapaxes(weights, 1, 2).astype(v.dtype)
            grad_v += jnp.matmul(transposed, grad, preferred_element_type=jnp.float32)
            grad_weights = jnp.einsum("gqd,gkd->gqk", grad, v, preferred_element_type=jnp.float32)
            grad_scores = (weights * (grad_weights - dot[..., None]) * width**-0.5).astype(q.dtype)
            grad_k += jnp.einsum("gqk,gqd->gkd", grad_scores, q, preferred_element_type=jnp.float32)
            return (grad_k, grad_v), jnp.matmul(grad_scores, k, preferred_element_type=jnp.float32)

        zeros = jnp.zeros(k.shape, jnp.float32)
        blocks = tuple(_split(x, size) for x in (q, segments, grad, dot))
        # A padded query has an infinite normaliser: its weights vanish and it adds nothing to any gradient.
        blocks += (_split(log_total, size, fill=jnp.inf),)
        (grad_k, grad_v), grad_q = jax.lax.scan(block, (zeros, zeros), blocks)
        return _join(grad_q, length), grad_k, grad_v

    segments = _head_segments(segment_ids, heads)
    inputs = tuple(_groups(x) for x in (q, k, v, segments, grad, dot, log_total))
    grads = [_ungroup(x, batch) for x in jax.lax.map(group, inputs)]
    return (*(g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)), None)


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
