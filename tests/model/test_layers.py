"""The loop that bounds memory: the same numbers in pieces whose size follows from what one device holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax.model.layers import in_chunks

ITEMS, WIDTH = 50, 4


def square_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(x) * jnp.sum(y, axis=-1, keepdims=True)


def arrays(rows: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(rows))
    return jax.random.normal(keys[0], (rows, ITEMS, WIDTH)), jax.random.normal(keys[1], (rows, ITEMS, 3))


def pieces(rows: int, shards: int, limit: int = 100) -> int:
    """Trips of the loop, or 0 where there is none."""
    traced = jax.make_jaxpr(
        lambda *a: in_chunks(square_sum, a, values_per_item=WIDTH, limit=limit, shards=shards)
    )(*arrays(rows))
    return max((e.params["length"] for e in traced.eqns if e.primitive.name == "scan"), default=0)


@pytest.mark.parametrize("limit", [7, 100, 399, 10_000])
@pytest.mark.parametrize("shards", [1, 2])
def test_pieces_change_no_value(limit: int, shards: int) -> None:
    """(Mutant: the last, padded piece not cut.)"""
    given = arrays(4)

    def total(*a: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = in_chunks(square_sum, a, values_per_item=WIDTH, limit=limit, shards=shards)
        return jnp.sum(jnp.sin(out)), out

    (_, found), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*given)
    np.testing.assert_array_equal(found, square_sum(*given))
    wanted = jax.grad(lambda *a: jnp.sum(jnp.sin(square_sum(*a))), argnums=(0, 1))(*given)
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_device_does_as_many_pieces_whatever_the_size_of_the_job() -> None:
    """(Mutant: pieces from the rows of the whole job.)"""
    assert [pieces(2 * shards, shards) for shards in (1, 2, 8)] == [4, 4, 4]
    assert pieces(1, 1, limit=WIDTH * ITEMS) == 0
