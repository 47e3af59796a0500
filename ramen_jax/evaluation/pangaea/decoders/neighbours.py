"""k-nearest-neighbour classification: no training, a bank of pooled features and a vote weighted by similarity.

Shape letters: Q queries, N places in the bank, K neighbours, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ramen_jax.evaluation.pangaea.decoders.linear import pooled

TEMPERATURE = 0.1
SINGLE_LABEL_NEIGHBOURS = 5
MULTI_LABEL_NEIGHBOURS = 20
MULTI_LABEL_POSITIVES = 10


def embed(levels: Sequence[jax.Array]) -> jax.Array:
    """Levels [B, h, w, D_i] -> unit vectors [B, D] float16."""
    return unit_vectors(pooled(levels))


def unit_vectors(vectors_NxD: jax.Array) -> jax.Array:
    """[N, D] float16, each of length 1: what the benchmark stores in its bank."""
    norm = jnp.sqrt(jnp.sum(jnp.square(vectors_NxD), axis=1, keepdims=True))
    return (vectors_NxD / jnp.maximum(norm, 1e-12)).astype(jnp.float16)


def vote(queries_QxD: jax.Array, bank_NxD: jax.Array, labels_NxC: jax.Array, *, neighbours: int) -> jax.Array:
    """Scores [Q, C] float32 in [0, 1]: the neighbours' labels, weighted by exp(cosine similarity / 0.1).

    Args:
        queries_QxD, bank_NxD: of `unit_vectors`.
        labels_NxC: 0 or 1 per class; one-hot rows for single-label tasks.
        neighbours: how many of the bank vote; all of a smaller bank do.
    """
    similarity_QxN = jnp.matmul(
        queries_QxD.astype(jnp.float32), bank_NxD.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    nearest_QxK, index_QxK = jax.lax.top_k(similarity_QxN, min(neighbours, bank_NxD.shape[0]))
    # A softmax of similarity / temperature: the same ranking as the plain weights, and no exponential overflows.
    weights_QxK = jax.nn.softmax(nearest_QxK / TEMPERATURE, axis=1)
    labels_QxKxC = labels_NxC.astype(jnp.float32)[index_QxK]
    return jnp.einsum("qk,qkc->qc", weights_QxK, labels_QxKxC, precision=jax.lax.Precision.HIGHEST)


def ranking(scores_QxC: jax.Array) -> jax.Array:
    """Classes from the best to the worst, [Q, C]; equal scores keep the order of the classes."""
    return jnp.argsort(-scores_QxC, axis=1, stable=True)


def positives(scores_QxC: jax.Array, count: int = MULTI_LABEL_POSITIVES) -> jax.Array:
    """The `count` highest classes of every query marked 1 in [Q, C] int32: the benchmark's multi-label answer."""
    _, best = jax.lax.top_k(scores_QxC, min(count, scores_QxC.shape[1]))
    return jnp.sum(jax.nn.one_hot(best, scores_QxC.shape[1], dtype=jnp.int32), axis=1)
