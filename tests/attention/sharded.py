"""Attention on eight devices against one: equal values and gradients, no communication, a share of the work each."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ramen_jax.attention.attention import Attention

ROWS, LENGTH, HEADS, WIDTH = 4, 1100, 4, 8
COLLECTIVES = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\b")


def with_gradients(attention: Attention, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, grad, segments = arrays
    out, pull = jax.vjp(lambda *qkv: attention(*qkv, segments), q, k, v)
    return out, *pull(grad)


def main() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (ROWS, LENGTH, HEADS, WIDTH)) for key in keys]
    segments = np.sort(np.random.default_rng(0).integers(1, 5, (ROWS, LENGTH)), axis=1).astype(np.int32)
    segments[:, -50:] = 0
    alone = jax.jit(lambda *a: with_gradients(Attention("blockwise"), *a))(*arrays, segments)

    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    placed = [*(jax.device_put(a, split) for a in arrays), jax.device_put(segments, rows)]
    program = jax.jit(lambda *a: with_gradients(Attention.on(mesh), *a)).lower(*placed).compile()
    text = program.as_text()
    assert COLLECTIVES.search(text) is None, COLLECTIVES.search(text)
    assert f"f32[{ROWS},{LENGTH},{HEADS}" not in text, "a device holds all rows and heads"
    for ours, theirs in zip(program(*placed), alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
        assert ours.sharding.is_equivalent_to(split, ours.ndim)
    short = [jnp.asarray(a[:, :100]) for a in arrays[:3]]
    np.testing.assert_allclose(
        Attention.on(mesh)(*short, None), Attention("blockwise")(*short, None), atol=1e-6
    )


if __name__ == "__main__":
    main()
