"""Which blocks of keys a block of queries has to meet. Shared by the kernels that work in fixed blocks.

Shape letters: B rows, L tokens, P = L in whole blocks, N blocks of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

NOBODY = -1  # the id of places beyond the row
LAST = np.iinfo(np.int32).max


def in_whole_blocks(
    arrays: tuple[jax.Array, ...], segment_ids_BxL: jax.Array, block: int
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """[B, L, ...] arrays with zeros, and ids with NOBODY, up to a whole number of blocks."""
    missing = -segment_ids_BxL.shape[1] % block
    padded = tuple(jnp.pad(a, [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2)) for a in arrays)
    return padded, jnp.pad(segment_ids_BxL, [(0, 0), (0, missing)], constant_values=NOBODY)


def block_ranges(ids_BxP: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Block i of a row shares ids with blocks of [first[i], last[i]) only; both [B, N] int32.

    Two blocks can only share an id where their intervals of ids overlap. Ids may come in any order; in rows whose ids
    rise, padding last, no block too many is named.
    """
    ordered = jnp.where(ids_BxP > 0, ids_BxP, jnp.where(ids_BxP == 0, LAST - 1, LAST))
    blocks = ordered.reshape(ordered.shape[0], -1, block)
    low, high = jnp.min(blocks, axis=2), jnp.max(blocks, axis=2)
    meet_BxNxN = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    number = blocks.shape[1]
    first = jnp.argmax(meet_BxNxN, axis=2)
    last = number - jnp.argmax(meet_BxNxN[:, :, ::-1], axis=2)
    return first.astype(jnp.int32), last.astype(jnp.int32)
