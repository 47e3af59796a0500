"""One map per level from a series of maps or a pair of them: what a decoder does before its head.

Every level is [B, T, h, w, D] and becomes [B, h, w, D']. Linear and L-TAE weights are shared by all levels, hence the
running statistics of the L-TAE's BatchNorm move once per level and step, as in the benchmark.

Shape letters: B places, T dates, h, w grid, D channels, A heads (16), F = D / A.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.evaluation.pangaea.decoders.layers import (
    EPS,
    HIGHEST,
    BatchNorm,
    Dense,
    dropout,
    per_channel,
    uniform,
)

HEADS = 16
KEY_DIM = 4
ATTENTION_DROPOUT = 0.1
OUTPUT_DROPOUT = 0.2


class LinearTime(nnx.Module):
    """One weight per date and a bias, the same for every channel, pixel and level."""

    def __init__(self, dates: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(uniform(rngs.params(), (dates,), dates))
        self.bias = nnx.Param(uniform(rngs.params(), (), dates))

    def __call__(self, x_BxTxhxwxD: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        del train, key
        return jnp.einsum("t,bthwd->bhwd", self.weight[...], x_BxTxhxwxD, precision=HIGHEST) + self.bias[...]


class TemporalAttention(nnx.Module):
    """L-TAE (Garnot and Landrieu) without dates, at every pixel of the token grid.

    GroupNorm over (channels of the group, dates); dense; 16 heads that weigh the dates by a learned query; dense,
    BatchNorm, ReLU; GroupNorm. The query is folded into the keys (D x 16 numbers instead of D x 64); the bias of
    the keys adds the same score to every date, so the softmax and every result are without it.
    """

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs):
        if width % HEADS:
            raise ValueError(f"the L-TAE has {HEADS} heads: its width must be a multiple, found {width}")
        normal = nnx.initializers.normal((2.0 / KEY_DIM) ** 0.5)
        self.input_norm = GroupNorm(width, rngs=rngs)
        self.input = Dense(width, width, dtype=dtype, rngs=rngs)
        self.query = nnx.Param(normal(rngs.params(), (HEADS, KEY_DIM)))
        self.key = Dense(width, HEADS * KEY_DIM, dtype=dtype, rngs=rngs)
        self.key.kernel[...] = normal(rngs.params(), (width, HEADS * KEY_DIM))
        self.output = Dense(width, width, dtype=dtype, rngs=rngs)
        self.batch_norm = BatchNorm(width, rngs=rngs)
        self.output_norm = GroupNorm(width, rngs=rngs)

    def __call__(self, x_BxTxhxwxD: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        attention_key, output_key = (None, None) if key is None else jax.random.split(key)
        values = self.input(self.input_norm(x_BxTxhxwxD, date_axis=1))
        keys_DxAxQ = self.key.kernel[...].reshape(-1, HEADS, KEY_DIM)
        folded_DxA = jnp.einsum("daq,aq->da", keys_DxAxQ, self.query[...], precision=HIGHEST) / KEY_DIM**0.5
        scores = jnp.matmul(values, folded_DxA.astype(values.dtype)).astype(jnp.float32)
        attention = dropout(jax.nn.softmax(scores, axis=1), ATTENTION_DROPOUT, attention_key)
        values_BxTxhxwxAxF = values.reshape(*values.shape[:4], HEADS, -1)
        pooled = jnp.einsum("bthwa,bthwaf->bhwaf", attention.astype(values.dtype), values_BxTxhxwxAxF)
        pooled = pooled.reshape(*pooled.shape[:3], -1)
        pooled = jax.nn.relu(self.batch_norm(pooled, self.output, train))
        return self.output_norm(dropout(pooled, OUTPUT_DROPOUT, output_key))


class GroupNorm(nnx.Module):
    """16 groups of channels; with `date_axis`, statistics over the dates too. Float32 statistics."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, date_axis: int | None = None) -> jax.Array:
        groups = x.astype(jnp.float32).reshape(*x.shape[:-1], HEADS, -1)
        axes = (-1,) if date_axis is None else (date_axis, -1)
        mean = jnp.mean(groups, axis=axes, keepdims=True)
        var = jnp.mean(jnp.square(groups - mean), axis=axes, keepdims=True)
        normal = ((groups - mean) * jax.lax.rsqrt(var + EPS)).reshape(x.shape)
        y = normal * per_channel(self.scale[...], x.ndim) + per_channel(self.bias[...], x.ndim)
        return y.astype(x.dtype)


def difference(x_BxTxhxwxD: jax.Array) -> jax.Array:
    """Second date minus first; later ones are ignored."""
    return x_BxTxhxwxD[:, 1] - x_BxTxhxwxD[:, 0]


def concatenation(x_BxTxhxwxD: jax.Array) -> jax.Array:
    """First and second date on the channels; later ones are ignored."""
    return jnp.concatenate([x_BxTxhxwxD[:, 0], x_BxTxhxwxD[:, 1]], axis=-1)
