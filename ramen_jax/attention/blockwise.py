"""Attention on a CPU: tile by tile, foreign segments left out, memory that grows with the row's length.

One head at a time: its queries go in tiles that begin where a segment begins, so that a tile's queries share one
segment, and meet the keys of that segment only. The work of a row is therefore the sum of its segments' squares and
not the square of its length. The backward pass recomputes the scores tile by tile.

What makes it fast on a CPU, measured against the alternatives:

- Scores lie keys by queries. Maxima and sums over keys then run down the columns, whole vectors at a time, and
  every product is one that the matrix library takes without a transposition.
- A tile is large enough for the library to use several cores, and small enough to stay in the cache. What is left
  of a segment goes in smaller tiles.
- Tiles whose keys all belong to the segment take no mask.

Shape letters: B rows, L tokens, H heads, D head width; in one head also P = L and the padding that lets a tile
overhang the row, Q queries and K keys of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ramen_jax.attention.blocks import NOBODY
from ramen_jax.attention.dense import MASKED, SAVED

QUERIES = 512  # of a tile; what is left of a segment goes in tiles of FEW_QUERIES
FEW_QUERIES = 64
WHOLE_KEYS = 1024  # of a tile that needs no mask
KEYS = 256

Carry = tuple[jax.Array, ...]


class Run(NamedTuple):
    """A run of equal ids in a row, and where the tokens with that id are. int32 scalars."""

    begin: jax.Array
    end: jax.Array
    first: jax.Array  # the id's tokens lie in [first, last) ...
    last: jax.Array
    alone: jax.Array  # ... and 1 where nothing else does: this run is the whole segment


class Segments(NamedTuple):
    """The runs of each row, from left to right. A segment is one run, unless its id comes again further on."""

    ids: jax.Array  # [B, L]
    number: jax.Array  # [B]: runs in the row
    runs: Run  # [B, L] each, the first `number` of a row in use


def locate(segment_ids_BxL: jax.Array) -> Segments:
    """The runs of every row."""
    length = segment_ids_BxL.shape[1]
    place_L = jnp.arange(length, dtype=jnp.int32)

    def row(ids_L: jax.Array) -> tuple[jax.Array, Run]:
        def run(state: tuple[jax.Array, jax.Array, Run]) -> tuple[jax.Array, jax.Array, Run]:
            begin, number, runs = state
            same_L = ids_L == ids_L[begin]
            end = jnp.min(jnp.where(~same_L & (place_L > begin), place_L, length))
            first = jnp.min(jnp.where(same_L, place_L, length))
            last = jnp.max(jnp.where(same_L, place_L + 1, 0))
            alone = jnp.sum(same_L, dtype=jnp.int32) == last - first
            found = Run(begin, end, first, last, alone.astype(jnp.int32))
            return end, number + 1, Run(*(_put(r, number, f[None]) for r, f in zip(runs, found, strict=True)))

        zero = jnp.int32(0)
        start = (zero, zero, Run(*(jnp.zeros_like(ids_L),) * 5))
        return jax.lax.while_loop(lambda state: state[0] < length, run, start)[1:]

    return Segments(segment_ids_BxL, *jax.lax.map(row, segment_ids_BxL))


@jax.custom_vjp
def attend(
    q_BxLxHxD: jax.Array, k_BxLxHxD: jax.Array, v_BxLxHxD: jax.Array, segment_ids_BxL: jax.Array
) -> jax.Array:
    """[B, L, H, D] in the dtype of v; everything within is float32."""
    return _forward(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segment_ids_BxL)[0]


def _sizes(length: int) -> tuple[int, ...]:
    """Queries of a tile, the larger first. A short row has small tiles only."""
    return (QUERIES, FEW_QUERIES) if length >= QUERIES else (FEW_QUERIES,)


def _over_tiles(
    segments: Segments, tile: Callable[[int, jax.Array, Run, Carry], Carry], carry: Carry
) -> Carry:
    """`tile(queries, begin, run, carry)` for tiles that cover one row from left to right, none across two runs.

    The last tile of a run may overhang it: what it writes there, the next run's tiles write anew.
    """
    sizes = _sizes(segments.ids.shape[0])

    def run(i: jax.Array, carry: Carry) -> Carry:
        own = Run(*(field[i] for field in segments.runs))
        begin = own.begin
        for size in sizes:
            left = own.end - begin
            count = left // size if size > sizes[-1] else -(-left // size)

            def at(j: jax.Array, carry: Carry, size: int = size, begin: jax.Array = begin) -> Carry:
                return tile(size, begin + j * size, own, carry)

            carry = jax.lax.fori_loop(0, count, at, carry)
            begin = begin + count * size
        return carry

    return jax.lax.fori_loop(0, segments.number, run, carry)


def _over_keys(
    run: Run,
    queries: int,
    length: int,
    keys: Callable[[int, bool, jax.Array, Carry], Carry],
    state: Carry,
) -> Carry:
    """`keys(size, masked, start, state)` for tiles that cover the keys of a run's segment."""
    first = run.first
    if queries == QUERIES and length >= WHOLE_KEYS:
        whole = run.alone * ((run.last - first) // WHOLE_KEYS)
        state = jax.lax.fori_loop(
            0, whole, lambda i, s, first=first: keys(WHOLE_KEYS, False, first + i * WHOLE_KEYS, s), state
        )
        first = first + whole * WHOLE_KEYS
    parts = (run.last - first + KEYS - 1) // KEYS
    return jax.lax.fori_loop(0, parts, lambda i, s: keys(KEYS, True, first + i * KEYS, s), state)


def _over_heads(
    one: Callable[..., Carry], arrays: tuple[jax.Array, ...], segments: Segments
) -> tuple[jax.Array, ...]:
    """`one(segments of the row, *arrays of one head [P, ...])` for every head of every row: [B, L, H, ...] each.

    Arrays are [B, L, H, ...], handed over in float32 and padded at the end of the row.
    """
    batch, length, heads = arrays[0].shape[:3]

    def head(n: jax.Array) -> tuple[jax.Array, ...]:
        row, column = n // heads, n % heads
        own = [jax.lax.dynamic_index_in_dim(a[row], column, axis=1, keepdims=False) for a in arrays]
        own = [_overhang(a.astype(jnp.float32)) for a in own]
        here = jax.tree.map(lambda a: a[row], segments)
        return tuple(found[:length] for found in one(here, *own))

    found = jax.lax.map(head, jnp.arange(batch * heads))
    return tuple(jnp.moveaxis(f.reshape(batch, heads, *f.shape[1:]), 1, 2) for f in found)


def _overhang(array: jax.Array, fill: int = 0) -> jax.Array:
    """[L, ...] -> [P, ...]."""
    return jnp.pad(array, [(0, max(FEW_QUERIES, KEYS))] + [(0, 0)] * (array.ndim - 1), constant_values=fill)


def _cut(array: jax.Array, begin: jax.Array, size: int, axis: int = 0) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, begin, size, axis)


def _put(array: jax.Array, begin: jax.Array, part: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, begin, 0)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, L, H, D] output and [B, L, H] logarithm of each query's normaliser."""
    length, width = q.shape[1], q.shape[3]

    def head(segments: Segments, q_PxD: jax.Array, k_PxD: jax.Array, v_PxD: jax.Array) -> Carry:
        q_PxD, v_DxP = q_PxD * width**-0.5, v_PxD.T
        ids_P = _overhang(segments.ids, NOBODY)

        def tile(queries: int, begin: jax.Array, run: Run, written: Carry) -> Carry:
            out_PxD, log_total_P = written
            q_QxD = _cut(q_PxD, begin, queries)

            def keys(size: int, masked: bool, start: jax.Array, state: Carry) -> Carry:
                top_Q, total_Q, sum_DxQ = state
                scores_KxQ = _cut(k_PxD, start, size) @ q_QxD.T
                if masked:
                    same_K = _cut(ids_P, start, size) == ids_P[begin]
                    scores_KxQ = jnp.where(same_K[:, None], scores_KxQ, MASKED)
                new_Q = jnp.maximum(top_Q, jnp.max(scores_KxQ, axis=0))
                weights_KxQ = jnp.exp(scores_KxQ - new_Q[None])
                fade_Q = jnp.exp(top_Q - new_Q)
                total_Q = total_Q * fade_Q + jnp.sum(weights_KxQ, axis=0)
                return new_Q, total_Q, sum_DxQ * fade_Q[None] + _cut(v_DxP, start, size, 1) @ weights_KxQ

            state = (jnp.full(queries, MASKED), jnp.zeros(queries), jnp.zeros((width, queries)))
            top_Q, total_Q, sum_DxQ = _over_keys(run, queries, length, keys, state)
            out_PxD = _put(out_PxD, begin, (sum_DxQ / total_Q[None]).T)
            return out_PxD, _put(log_total_P, begin, top_Q + jnp.log(total_Q))

        return _over_tiles(segments, tile, (jnp.zeros_like(q_PxD), jnp.zeros(q_PxD.shape[0])))

    out, log_total = _over_heads(head, (q, k, v), locate(segment_ids))
    return out.astype(v.dtype), log_total


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, tuple]:
    out, log_total = (checkpoint_name(x, SAVED) for x in _forward(q, k, v, segment_ids))
    return out, (q, k, v, segment_ids, out, log_total)


def _attend_backward(saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, segment_ids, out, log_total = saved
    length, width = q.shape[1], q.shape[3]
    scale = width**-0.5
    dot = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def head(segments: Segments, *arrays: jax.Array) -> Carry:
        q_PxD, k_PxD, v_PxD, grad_PxD, dot_P, log_total_P = arrays
        q_PxD, k_DxP = q_PxD * scale, k_PxD.T
        ids_P = _overhang(segments.ids, NOBODY)

        def tile(queries: int, begin: jax.Array, run: Run, written: Carry) -> Carry:
            grad_q_PxD, grad_k_PxD, grad_v_PxD = written
            q_QxD, grad_QxD, dot_Q = (_cut(a, begin, queries) for a in (q_PxD, grad_PxD, dot_P))
            # A query that overhangs the segment gets an infinite normaliser: its weights vanish exactly.
            inside_Q = begin + jnp.arange(queries, dtype=jnp.int32) < run.end
            log_total_Q = jnp.where(inside_Q, _cut(log_total_P, begin, queries), jnp.inf)

            def keys(size: int, masked: bool, start: jax.Array, state: Carry) -> Carry:
                grad_q_DxQ, grad_k_PxD, grad_v_PxD = state
                weights_KxQ = jnp.exp(_cut(k_PxD, start, size) @ q_QxD.T - log_total_Q[None])
                if masked:
                    same_K = _cut(ids_P, start, size) == ids_P[begin]
                    weights_KxQ = jnp.where(same_K[:, None], weights_KxQ, 0.0)
                grad_weights_KxQ = _cut(v_PxD, start, size) @ grad_QxD.T
                grad_scores_KxQ = weights_KxQ * (grad_weights_KxQ - dot_Q[None])
                grad_v_PxD = _put(grad_v_PxD, start, _cut(grad_v_PxD, start, size) + weights_KxQ @ grad_QxD)
                grad_k_PxD = _put(grad_k_PxD, start, _cut(grad_k_PxD, start, size) + grad_scores_KxQ @ q_QxD)
                return grad_q_DxQ + _cut(k_DxP, start, size, 1) @ grad_scores_KxQ, grad_k_PxD, grad_v_PxD

            state = (jnp.zeros((width, queries)), grad_k_PxD, grad_v_PxD)
            grad_q_DxQ, grad_k_PxD, grad_v_PxD = _over_keys(run, queries, length, keys, state)
            return _put(grad_q_PxD, begin, grad_q_DxQ.T * scale), grad_k_PxD, grad_v_PxD

        return _over_tiles(segments, tile, (jnp.zeros_like(q_PxD),) * 3)

    grads = _over_heads(head, (q, k, v, grad, dot, log_total), locate(segment_ids))
    return (*(g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)), None)


attend.defvjp(_attend_forward, _attend_backward)
