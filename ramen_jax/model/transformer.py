"""Pre-norm transformer blocks, stacked and scanned: compile time does not grow with depth.

Shape letters: B rows, L tokens, D width, H heads, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.attention.attention import PORTABLE, SAVED, Attention
from ramen_jax.model.layers import layer_norm, linear
from ramen_jax.model.products import ANYWHERE, Places, product

KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED)
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": KEEP_ATTENTION,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, KEEP_ATTENTION
    ),
}


class Block(nnx.Module):
    """Attention and MLP, each behind a LayerNorm and added back (timm's Block, which the official code uses)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        eps: float,
        *,
        dtype: Any,
        attention: Attention = PORTABLE,
        places: Places = ANYWHERE,
        rngs: nnx.Rngs,
    ):
        if dim % heads:
            raise ValueError(f"the width {dim} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.attention = attention
        self.places = places
        hidden = int(dim * mlp_ratio)
        # Float32 whatever the dtype: so are the gradients of scale and bias, over all rows of all devices.
        self.attention_norm = layer_norm(dim, eps, rngs=rngs)
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.project = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(dim, eps, rngs=rngs)
        self.mlp_inner = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.mlp_outer = linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        batch, length, dim = x_BxLxD.shape
        places, view = self.places, (3, self.heads, dim // self.heads)
        qkv = product(self.attention_norm(x_BxLxD), self.qkv, places["qkv"], view)
        mixed = self.attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], segment_ids)
        x_BxLxD = x_BxLxD + product(mixed.reshape(batch, length, dim), self.project, places["project"])
        hidden_BxLxF = product(self.mlp_norm(x_BxLxD), self.mlp_inner, places["mlp_inner"])
        hidden_BxLxF = jax.nn.gelu(hidden_BxLxF, approximate=False)
        return x_BxLxD + product(hidden_BxLxF, self.mlp_outer, places["mlp_outer"])


class Transformer(nnx.Module):
    """`depth` blocks whose parameters are stacked on a leading axis."""

    def __init__(
        self,
        depth: int,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        remat: str = "none",
        dtype: Any = jnp.float32,
        attention: Attention = PORTABLE,
        places: Places = ANYWHERE,
        rngs: nnx.Rngs,
    ):
        if remat not in REMAT_POLICIES:
            raise ValueError(f"unknown remat policy '{remat}'; choose one of {', '.join(REMAT_POLICIES)}")
        self.remat = remat

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(
                dim, heads, mlp_ratio, eps, dtype=dtype, attention=attention, places=places, rngs=rngs
            )

        self.blocks = stacked(rngs)

    def __call__(self, x_BxLxD: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """[B, L, D] -> [B, L, D] after the last block."""
        return self._scan(x_BxLxD, segment_ids, collect=False)[0]

    def layers(self, x_BxLxD: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """[B, L, D] -> [depth, B, L, D], the output of every block."""
        return self._scan(x_BxLxD, segment_ids, collect=True)[1]

    def _scan(self, x: jax.Array, segment_ids: jax.Array | None, collect: bool) -> tuple[jax.Array, Any]:
        graph, parameters = nnx.split(self.blocks)

        def one(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array | None]:
            x = nnx.merge(graph, layer)(x, segment_ids)
            return x, x if collect else None

        policy = REMAT_POLICIES[self.remat]
        if policy is not None:
            one = jax.checkpoint(one, policy=policy, prevent_cse=False)
        return jax.lax.scan(one, x, parameters)
