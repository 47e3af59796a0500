"""From image slots to tokens and back: normalisation, sampling, gathering and scattering.

All in float32. The helpers take one modality's `Images` (see ramen_jax.rows.batch for the shape letters).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from ramen_jax.rows.batch import FRAME_NONE, FRAME_REAL, Images

HIGHEST = jax.lax.Precision.HIGHEST


def normalised(images: Images) -> jax.Array:
    """(values - mean) / std, exactly 0 for absent bands, missing frames and invalid pixels: [R,S,T,C,H,W]."""
    chex.assert_rank([images.values_RxSxTxCxHxW, images.mean_RxSxC, images.frames_RxSxT], [6, 3, 3])
    values = images.values_RxSxTxCxHxW.astype(jnp.float32)
    mean = images.mean_RxSxC[:, :, None, :, None, None]
    std = images.std_RxSxC[:, :, None, :, None, None]
    return jnp.where(observed(images), (values - mean) / std, 0.0)


def observed(images: Images) -> jax.Array:
    """Which values were measured, broadcastable to [R,S,T,C,H,W]."""
    real = (images.frames_RxSxT == FRAME_REAL)[:, :, :, None, None, None]
    known = real & images.present_RxSxC[:, :, None, :, None, None]
    if images.valid_RxSxTxHxW is not None:
        known = known & images.valid_RxSxTxHxW[:, :, :, None, :, :]
    return known


def to_grid(values: jax.Array, images: Images) -> jax.Array:
    """[R,S,T,C,H,W] pixels -> [R,S,T,C,G,G] tokens by the two sampling matrices.

    Columns first: over the pixels as they lie in memory that is one product of matrices, which transposes nothing.
    """
    cols = jnp.einsum("rstchw,rskw->rstchk", values, images.down_cols_RxSxGxW, precision=HIGHEST)
    return jnp.einsum("rstchk,rsgh->rstcgk", cols, images.down_rows_RxSxGxH, precision=HIGHEST)


def to_pixels(grid: jax.Array, images: Images) -> jax.Array:
    """[R,S,T,C,G,G] tokens -> [R,S,T,C,H,W] pixels by the two decoder matrices; columns last, for the same reason."""
    rows = jnp.einsum("rstcgk,rshg->rstchk", grid, images.up_rows_RxSxHxG, precision=HIGHEST)
    return jnp.einsum("rstchk,rswk->rstchw", rows, images.up_cols_RxSxWxG, precision=HIGHEST)


def sampled(images: Images, missing: str) -> jax.Array:
    """The resampled raw channels of every cell, [R,S,T,C,G,G].

    With `missing: excluded` invalid pixels have no weight: a token is the weighted mean of the valid pixels it
    reads, and 0 where there are none. With `missing: zeros` they are zeros among the others (the reference).
    """
    values = to_grid(normalised(images), images)
    if missing == "zeros" or images.valid_RxSxTxHxW is None:
        return values
    valid = images.valid_RxSxTxHxW.astype(jnp.float32)[:, :, :, None]
    weight = to_grid(valid, images)
    return jnp.where(weight > 1e-6, values / jnp.maximum(weight, 1e-6), 0.0)


def gather_cells(grid: jax.Array, slot_RxN: jax.Array, cell_RxN: jax.Array) -> jax.Array:
    """[R,S,T,C,G,G] -> [R,N,T,C]: the cells that a token list names; padding entries (slot -1) are zero."""
    rows, slots, dates, bands, side, _ = grid.shape
    flat = jnp.transpose(grid, (0, 1, 4, 5, 2, 3)).reshape(rows, slots * side * side, dates, bands)
    index = jnp.maximum(slot_RxN, 0) * side * side + cell_RxN
    tokens = jnp.take_along_axis(flat, index[:, :, None, None], axis=1)
    return jnp.where((slot_RxN >= 0)[:, :, None, None], tokens, 0.0)


def scatter_cells(
    tokens: jax.Array, slot_RxM: jax.Array, cell_RxM: jax.Array, slots: int, side: int
) -> jax.Array:
    """[R,M,T,C] -> [R,S,T,C,G,G]: the inverse of `gather_cells`; cells of no token are zero."""
    rows, _, dates, bands = tokens.shape
    cells = slots * side * side
    index = jnp.where(slot_RxM >= 0, slot_RxM * side * side + cell_RxM, cells)
    blank = jnp.zeros((cells + 1, dates, bands), tokens.dtype)
    # Row by row: written with row numbers in the index, a mesh gathers the rows of all devices onto each.
    flat = jax.vmap(lambda index_M, tokens_MxTxC: blank.at[index_M].set(tokens_MxTxC))(index, tokens)[
        :, :cells
    ]
    return jnp.transpose(flat.reshape(rows, slots, side, side, dates, bands), (0, 1, 4, 5, 2, 3))


def gather_slots(per_slot: jax.Array, slot_RxN: jax.Array) -> jax.Array:
    """[R,S,...] values of slots -> [R,N,...] values of tokens (slot 0 stands in for padding)."""
    index = jnp.maximum(slot_RxN, 0).reshape(*slot_RxN.shape, *(1,) * (per_slot.ndim - 2))
    return jnp.take_along_axis(per_slot, index, axis=1)


def spread_slots(per_slot: jax.Array, slot_RxN: jax.Array) -> jax.Array:
    """`gather_slots` for values that are learned: [R,S,F] -> [R,N,F], zeros for padding.

    A product with a one-hot matrix: its gradient sums thousands of tokens in a matrix product, where that of a
    gather would add them one after the other in float32.
    """
    slots = jnp.arange(per_slot.shape[1])[None, None, :]
    one_hot = (slot_RxN[:, :, None] == slots).astype(per_slot.dtype)
    return jnp.einsum("rns,rsf->rnf", one_hot, per_slot, precision=HIGHEST)


def token_frames(images: Images, slot_RxN: jax.Array) -> jax.Array:
    """[R,N,T] bool: the frames that exist for each token of a list (none for padding)."""
    frames = gather_slots(images.frames_RxSxT != FRAME_NONE, slot_RxN)
    return frames & (slot_RxN >= 0)[:, :, None]
