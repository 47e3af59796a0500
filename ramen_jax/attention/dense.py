"""Attention by its definition: all scores of a row at once. The oracle of the other ways, and best for short rows.

Shape letters: B rows, L tokens, H heads, D head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # the score of a foreign key: finite, so that no row of scores is ever without a maximum
SAVED = "attention"  # what rematerialisation keeps, so that it never repeats the attention itself


def attend(
    q_BxLxHxD: jax.Array, k_BxLxHxD: jax.Array, v_BxLxHxD: jax.Array, segment_ids_BxL: jax.Array
) -> jax.Array:
    """[B, L, H, D] in the dtype of v; scores and softmax are float32."""
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q_BxLxHxD, k_BxLxHxD, v_BxLxHxD))
    scores = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    same = segment_ids_BxL[:, None, :, None] == segment_ids_BxL[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, scores, MASKED), axis=-1)
    return jnp.moveaxis(jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v), 1, 2)
