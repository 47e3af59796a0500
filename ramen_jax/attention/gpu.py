"""Attention on a GPU: a flash kernel in Pallas (Triton) that leaves out the blocks of foreign segments.

JAX's own Pallas kernel masks scores by segment ids but goes through all keys, and cuDNN's knows no segments. Here a
block of queries goes through the blocks of keys between the first and the last that share an id with it
(`blocks.block_ranges`). Scores are recomputed in the backward pass, in one kernel for the gradients of keys and values
and one for those of queries (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

Shape letters: B rows, L tokens, H heads, D head width, P = L in whole blocks, N blocks of a row; in a kernel Q
queries and K keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ramen_jax.attention.blocks import block_ranges, in_whole_blocks
from ramen_jax.attention.dense import MASKED, SAVED

BLOCK = 128  # tokens of a block, forward
BACKWARD_BLOCK = 64  # divides BLOCK
MIN_WIDTH = 16  # of a head: the least that the tensor cores take; widths are padded to a power of 2

Ref = Any


def attend(
    q_BxLxHxD: jax.Array,
    k_BxLxHxD: jax.Array,
    v_BxLxHxD: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """[B, L, H, D] in the dtype of v. `interpret` runs the kernels without a GPU, slowly."""
    length, width = q_BxLxHxD.shape[1], q_BxLxHxD.shape[3]
    arrays, ids_BxP = in_whole_blocks((q_BxLxHxD, k_BxLxHxD, v_BxLxHxD), segment_ids_BxL, BLOCK)
    missing = max(MIN_WIDTH, pl.next_power_of_2(width)) - width
    q, k, v = (jnp.pad(a, [(0, 0), (0, 0), (0, 0), (0, missing)]) for a in arrays)
    return _attend(q, k, v, ids_BxP, width**-0.5, interpret)[:, :length, :, :width]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, ids_BxP: jax.Array, scale: float, interpret: bool
) -> jax.Array:
    return _forward(q, k, v, ids_BxP, scale, interpret)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, ids_BxP: jax.Array, scale: float, interpret: bool
) -> tuple[jax.Array, tuple]:
    batch, length, heads, _ = q.shape
    call = _kernel_call(partial(_forward_kernel, scale=scale, block=BLOCK), BLOCK, q, interpret)
    out, log_total_BxHxP = call(
        (q, k, v, ids_BxP, *block_ranges(ids_BxP, BLOCK)),
        ("block", "row", "row", "ids", "range", "range"),
        (jax.ShapeDtypeStruct(v.shape, v.dtype), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
        ("block", "number"),
    )
    out, log_total_BxHxP = (checkpoint_name(x, SAVED) for x in (out, log_total_BxHxP))
    return out, (q, k, v, ids_BxP, out, log_total_BxHxP)


def _backward(scale: float, interpret: bool, saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, ids_BxP, out, log_total_BxHxP = saved
    dot_BxHxP = jnp.einsum("bphd,bphd->bhp", grad.astype(jnp.float32), out.astype(jnp.float32))
    inputs = (q, k, v, grad, log_total_BxHxP, dot_BxHxP, ids_BxP, *block_ranges(ids_BxP, BACKWARD_BLOCK))
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (q, k, v)]

    def call(kernel: Callable[..., None]) -> Callable[..., Any]:
        return _kernel_call(partial(kernel, scale=scale, block=BACKWARD_BLOCK), BACKWARD_BLOCK, q, interpret)

    tail = ("ids", "range", "range")
    grad_k, grad_v = call(_keys_kernel)(
        inputs, ("row", "block", "block", "row", "numbers", "numbers", *tail), like[1:], ("block", "block")
    )
    (grad_q,) = call(_queries_kernel)(
        inputs, ("block", "row", "row", "block", "number", "number", *tail), like[:1], ("block",)
    )
    return grad_q, grad_k, grad_v, None


_attend.defvjp(_forward, _backward)


def _kernel_call(
    kernel: Callable[..., None], block: int, like: jax.Array, interpret: bool
) -> Callable[[Sequence[jax.Array], Sequence[str], Sequence[jax.ShapeDtypeStruct], Sequence[str]], Any]:
    """`call(inputs, their kinds, outputs, their kinds)`: one program per block, row and head."""
    batch, length, heads, width = like.shape
    number = length // block
    kinds = {
        "block": pl.BlockSpec((None, block, None, width), lambda i, b, h: (b, i, h, 0)),
        "row": pl.BlockSpec((None, length, None, width), lambda i, b, h: (b, 0, h, 0)),
        "number": pl.BlockSpec((None, None, block), lambda i, b, h: (b, h, i)),
        "numbers": pl.BlockSpec((None, None, length), lambda i, b, h: (b, h, 0)),
        "ids": pl.BlockSpec((None, length), lambda i, b, h: (b, 0)),
        "range": pl.BlockSpec((None, number), lambda i, b, h: (b, 0)),
    }

    def call(
        inputs: Sequence[jax.Array],
        in_kinds: Sequence[str],
        outputs: Sequence[jax.ShapeDtypeStruct],
        out_kinds: Sequence[str],
    ) -> Any:
        return pl.pallas_call(
            kernel,
            grid=(number, batch, heads),
            in_specs=[kinds[kind] for kind in in_kinds],
            out_specs=[kinds[kind] for kind in out_kinds],
            out_shape=list(outputs),
            compiler_params=triton.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2),
            interpret=interpret,
        )(*inputs)

    return call


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product with float32 sums; float32 factors are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)


def _scores(q: jax.Array, k: jax.Array, ids_Q: jax.Array, ids_K: jax.Array, scale: float) -> jax.Array:
    """[Q, K] float32, foreign keys masked."""
    return jnp.where(ids_Q[:, None] == ids_K[None, :], _product(q, k.T) * scale, MASKED)


def _forward_kernel(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, ids_ref: Ref, first_ref: Ref, last_ref: Ref,
    out_ref: Ref, log_total_ref: Ref, *, scale: float, block: int
) -> None:  # fmt: skip
    i = pl.program_id(0)
    q_QxD, ids_Q = q_ref[...], ids_ref[pl.ds(i * block, block)]

    def keys(j: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
        top_Q, total_Q, sum_QxD = state
        at = pl.ds(j * block, block)
        scores_QxK = _scores(q_QxD, k_ref[at, :], ids_Q, ids_ref[at], scale)
        new_Q = jnp.maximum(top_Q, jnp.max(scores_QxK, axis=1))
        weights_QxK = jnp.exp(scores_QxK - new_Q[:, None])
        fade_Q = jnp.exp(top_Q - new_Q)
        part_QxD = _product(weights_QxK.astype(v_ref.dtype), v_ref[at, :])
        return new_Q, total_Q * fade_Q + jnp.sum(weights_QxK, axis=1), sum_QxD * fade_Q[:, None] + part_QxD

    start = (jnp.full(block, MASKED), jnp.zeros(block), jnp.zeros(q_QxD.shape, jnp.float32))
    top_Q, total_Q, sum_QxD = jax.lax.fori_loop(first_ref[i], last_ref[i], keys, start)
    out_ref[...] = (sum_QxD / total_Q[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = top_Q + jnp.log(total_Q)


def _keys_kernel(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, grad_ref: Ref, log_total_ref: Ref, dot_ref: Ref, ids_ref: Ref,
    first_ref: Ref, last_ref: Ref, grad_k_ref: Ref, grad_v_ref: Ref, *, scale: float, block: int
) -> None:  # fmt: skip
    """Gradients of one block of keys and values, over the queries that meet it."""
    j = pl.program_id(0)
    k_KxD, v_KxD, ids_K = k_ref[...], v_ref[...], ids_ref[pl.ds(j * block, block)]

    def queries(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at = pl.ds(i * block, block)
        q_QxD, grad_QxD = q_ref[at, :], grad_ref[at, :]
        scores_QxK = _scores(q_QxD, k_KxD, ids_ref[at], ids_K, scale)
        weights_QxK = jnp.exp(scores_QxK - log_total_ref[at][:, None])
        grad_scores_QxK = weights_QxK * (_product(grad_QxD, v_KxD.T) - dot_ref[at][:, None]) * scale
        grad_v_KxD = sums[1] + _product(weights_QxK.astype(grad_QxD.dtype).T, grad_QxD)
        return sums[0] + _product(grad_scores_QxK.astype(q_QxD.dtype).T, q_QxD), grad_v_KxD

    zeros = jnp.zeros(k_KxD.shape, jnp.float32)
    grad_k_KxD, grad_v_KxD = jax.lax.fori_loop(first_ref[j], last_ref[j], queries, (zeros, zeros))
    grad_k_ref[...] = grad_k_KxD.astype(grad_k_ref.dtype)
    grad_v_ref[...] = grad_v_KxD.astype(grad_v_ref.dtype)


def _queries_kernel(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, grad_ref: Ref, log_total_ref: Ref, dot_ref: Ref, ids_ref: Ref,
    first_ref: Ref, last_ref: Ref, grad_q_ref: Ref, *, scale: float, block: int
) -> None:  # fmt: skip
    """Gradients of one block of queries, over the keys that it meets."""
    i = pl.program_id(0)
    q_QxD, grad_QxD, ids_Q = q_ref[...], grad_ref[...], ids_ref[pl.ds(i * block, block)]
    log_total_Q, dot_Q = log_total_ref[...], dot_ref[...]

    def keys(j: jax.Array, sum_QxD: jax.Array) -> jax.Array:
        at = pl.ds(j * block, block)
        k_KxD = k_ref[at, :]
        weights_QxK = jnp.exp(_scores(q_QxD, k_KxD, ids_Q, ids_ref[at], scale) - log_total_Q[:, None])
        grad_scores_QxK = weights_QxK * (_product(grad_QxD, v_ref[at, :].T) - dot_Q[:, None]) * scale
        return sum_QxD + _product(grad_scores_QxK.astype(k_KxD.dtype), k_KxD)

    zeros = jnp.zeros(q_QxD.shape, jnp.float32)
    grad_q_ref[...] = jax.lax.fori_loop(first_ref[i], last_ref[i], keys, zeros).astype(grad_q_ref.dtype)
