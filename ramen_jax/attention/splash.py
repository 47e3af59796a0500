"""Attention on a TPU: JAX's splash attention, with the blocks of foreign segments left out.

The kernel masks scores by segment ids, and skips the blocks that its block mask says hold nothing. That mask is made
here from the ids: a block of queries meets the blocks of keys between the first and the last that share an id with it.

Shape letters: B rows, L tokens, H heads, D head width, P = L in whole blocks, N blocks of a row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
    DEFAULT_MASK_VALUE,
    BlockSizes,
    SegmentIds,
    SplashAttentionKernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from ramen_jax.attention.blocks import block_ranges, in_whole_blocks
from ramen_jax.attention.dense import SAVED

LANES = 128  # blocks are multiples of a TPU's vector lanes
BLOCK = 512  # tokens, of queries and of keys
LARGEST = 896  # of a row that is one block


def block_of(length: int) -> int:
    """Tokens of a block in rows of this length.

    By the schedules that the TPU's compiler gives the kernels (v5e), a pair of tokens costs a sixth less in blocks of
    1,024 than in blocks of 512, and 1.8 times as much in blocks of 256; but larger blocks visit more foreign pairs. 512
    is best for rows of many blocks; short rows are cut into one or two, to be padded less.
    """
    whole = -(-length // LANES) * LANES
    if whole <= LARGEST:
        return whole
    if whole <= 2 * BLOCK + 2 * LANES:
        return -(-whole // (2 * LANES)) * LANES
    return BLOCK


def attend(
    q_BxLxHxD: jax.Array,
    k_BxLxHxD: jax.Array,
    v_BxLxHxD: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """[B, L, H, D] in the dtype of v. `interpret` runs the kernel without a TPU, slowly."""
    length, width = q_BxLxHxD.shape[1], q_BxLxHxD.shape[3]
    block = block_of(length)
    arrays, ids_BxP = in_whole_blocks((q_BxLxHxD * width**-0.5, k_BxLxHxD, v_BxLxHxD), segment_ids_BxL, block)
    first_BxN, last_BxN = block_ranges(ids_BxP, block)
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,  # scores and their gradients are formed once, not in each of two kernels
    )

    def row(inputs: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, ids_P, first_N, last_N = inputs
        kernel = SplashAttentionKernel(
            _forward_mask(first_N, last_N),
            None,  # of the second backward kernel, which does not run
            _backward_mask(first_N, last_N),
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=SAVED,
            mask_function=None,
            interpret=interpret,
        )
        heads_first = (jnp.swapaxes(a, 0, 1) for a in (q, k, v))
        out: Any = kernel(*heads_first, SegmentIds(ids_P, ids_P))
        return jnp.swapaxes(out, 0, 1)

    out_BxPxHxD = jax.lax.map(row, (*arrays, ids_BxP, first_BxN, last_BxN))
    return out_BxPxHxD[:, :length]


def _forward_mask(first_N: jax.Array, last_N: jax.Array) -> MaskInfo:
    """For kernels that go through the keys of a block of queries."""
    place = jnp.arange(first_N.shape[0], dtype=jnp.int32)[None, :]
    first, last = first_N[:, None], last_N[:, None]
    # A block that is left out names the nearest that is not: the next one needed is fetched, the last one kept.
    return _mask(jnp.clip(place, first, last - 1), (place >= first) & (place < last))


def _backward_mask(first_N: jax.Array, last_N: jax.Array) -> MaskInfo:
    """For the kernel that goes through the queries (first axis) of a block of keys (second axis)."""
    forward = _forward_mask(first_N, last_N)
    assert forward.data_next is not None
    assert forward.block_mask is not None
    return _mask(forward.data_next[0].T, forward.block_mask[0].T > 0)


def _mask(fetch_NxN: jax.Array, run_NxN: jax.Array) -> MaskInfo:
    return MaskInfo(
        data_next=fetch_NxN[None],
        mask_next=None,
        block_mask=run_NxN[None].astype(jnp.int32),
        partial_mask_blocks=None,
        q_sequence=None,
        is_dynamic_mask=True,
    )
