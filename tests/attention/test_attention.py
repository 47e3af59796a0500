"""Attention within segments: both ways agree, and no gradient crosses a segment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax.attention import attention as module

SEGMENTS = np.array([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16], np.int32)


def random_qkv(length: int, batch: int = 2, heads: int = 3, width: int = 4, seed: int = 0) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (batch, length, heads, width)) for key in keys]


def expected(q: jax.Array, k: jax.Array, v: jax.Array, segments: np.ndarray) -> np.ndarray:
    """By the definition, one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(v)
    for b, i, h in np.ndindex(*q.shape[:3]):
        own = segments[b] == segments[b, i]
        scores = k[b, own, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, own, h] / weights.sum()
    return out


@pytest.mark.parametrize("way", ["_dense", "_blockwise"])
def test_matches_the_definition(way: str) -> None:
    q, k, v = random_qkv(16)
    found = getattr(module, way)(q, k, v, jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(found, expected(q, k, v, SEGMENTS), atol=2e-6)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 20), block=st.integers(1, 9), seed=st.integers(0, 3))
def test_blockwise_equals_dense_with_gradients(length: int, block: int, seed: int) -> None:
    q, k, v = random_qkv(length, seed=seed)
    rng = np.random.default_rng(seed)
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length))), jnp.int32)
    weight = jax.random.normal(jax.random.key(9), v.shape)

    def total(way: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(getattr(module, way)(q, k, v, segments) * weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_SCORES", {"cpu": block * length})
        gradients = jax.grad(total, argnums=(1, 2, 3))("_blockwise", q, k, v)
        value = total("_blockwise", q, k, v)
    np.testing.assert_allclose(value, total("_dense", q, k, v), rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients, jax.grad(total, argnums=(1, 2, 3))("_dense", q, k, v), strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-6)


@pytest.mark.parametrize("way", ["_dense", "_blockwise"])
def test_no_gradient_crosses_a_segment(way: str) -> None:
    q, k, v = random_qkv(16)
    segments = jnp.asarray(SEGMENTS)

    def first_segment(k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(getattr(module, way)(q, k, v, segments))[0, :5])

    for gradient in jax.grad(first_segment, argnums=(0, 1))(k, v):
        assert np.all(np.asarray(gradient)[0, 5:] == 0)
        assert np.all(np.asarray(gradient)[1] == 0)
        assert np.any(np.asarray(gradient)[0, :5] != 0)


def test_padding_is_finite_forward_and_backward() -> None:
    q, k, v = random_qkv(16)
    nothing = jnp.zeros((2, 16), jnp.int32)
    for way in ("_dense", "_blockwise"):
        gradient = jax.grad(lambda q, way=way: jnp.sum(getattr(module, way)(q, k, v, nothing)))(q)
        assert np.all(np.isfinite(gradient))


def test_long_rows_take_the_blockwise_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_LENGTH", 8)
    monkeypatch.setattr(module, "_dense", None)
    q, k, v = random_qkv(16)
    found = module.attention(q, k, v, jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(found, expected(q, k, v, SEGMENTS), atol=2e-6)
