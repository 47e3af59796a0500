"""UPerNet (Xiao et al., arXiv 1807.10221) on the maps of a plain transformer, as the benchmark uses it.

Neck (four levels at 4, 2, 1 and 1/2 of the token grid), pyramid pooling on the coarsest level, top-down sums, and one
fused map at the finest level. Every convolution keeps its bias in spite of the BatchNorm after it, and there is no
auxiliary head, as in the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.evaluation.pangaea.decoders.layers import (
    BatchNorm,
    ConvNorm,
    Dense,
    Double,
    Size,
    average_pool,
    dropout,
    max_pool,
    resize,
)

POOLS = (1, 2, 3, 6)
SCALES = (4.0, 2.0, 1.0, 0.5)
DROPOUT = 0.1


class UPerNet(nnx.Module):
    """Levels [B, h, w, D_i], fine to coarse blocks of the encoder, -> [B, H, W, outputs] float32.

    With `regression` the output passes a ReLU before it is interpolated to the label's size.
    """

    def __init__(
        self,
        widths: Sequence[int],
        outputs: int,
        *,
        channels: int,
        regression: bool,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.regression = regression
        self.scales = tuple(SCALES[4 * level // len(widths)] for level in range(len(widths)))
        necks = zip(widths, self.scales, strict=True)
        self.necks = nnx.List([Neck(width, scale, dtype=dtype, rngs=rngs) for width, scale in necks])

        def block(inputs: int, kernel: int) -> ConvNorm:
            return ConvNorm(inputs, channels, kernel, dtype=dtype, rngs=rngs)

        self.pools = nnx.List([block(widths[-1], 1) for _ in POOLS])
        self.top = block(widths[-1] + len(POOLS) * channels, 3)
        self.laterals = nnx.List([block(width, 1) for width in widths[:-1]])
        self.outputs = nnx.List([block(channels, 3) for _ in widths[:-1]])
        self.fuse = block(len(widths) * channels, 3)
        self.head = Dense(channels, outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, levels: Sequence[jax.Array], size: Size, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        pyramid = [neck(level, train) for neck, level in zip(self.necks, levels, strict=True)]
        maps = [lateral(level, train) for lateral, level in zip(self.laterals, pyramid[:-1], strict=True)]
        maps.append(self._top(pyramid[-1], train))
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + resize(maps[i], maps[i - 1].shape[1:3])
        maps[:-1] = [conv(x, train) for conv, x in zip(self.outputs, maps[:-1], strict=True)]
        fused = self.fuse(maps, train)
        # Whole channels are dropped, as Dropout2d does.
        result = self.head(dropout(fused, DROPOUT, key, shared=(1, 2))).astype(jnp.float32)
        return resize(jax.nn.relu(result) if self.regression else result, size)

    def _top(self, x_BxhxwxD: jax.Array, train: bool) -> jax.Array:
        pooled = [
            conv(average_pool(x_BxhxwxD, (side, side)), train)
            for conv, side in zip(self.pools, POOLS, strict=True)
        ]
        return self.top([x_BxhxwxD, *pooled], train)


class Neck(nnx.Module):
    """One level brought to 4, 2, 1 or 1/2 times the token grid."""

    def __init__(self, width: int, scale: float, *, dtype: str, rngs: nnx.Rngs):
        self.scale = scale
        doublings = {4.0: 2, 2.0: 1}.get(scale, 0)
        self.doublings = nnx.List([Double(width, dtype=dtype, rngs=rngs) for _ in range(doublings)])
        self.norms = nnx.List([BatchNorm(width, rngs=rngs) for _ in range(max(doublings - 1, 0))])

    def __call__(self, x_BxhxwxD: jax.Array, train: bool) -> jax.Array:
        if self.scale < 1:
            return max_pool(x_BxhxwxD)
        for norm, double in zip(self.norms, self.doublings[:-1], strict=True):
            x_BxhxwxD = jax.nn.gelu(norm(x_BxhxwxD, double, train), approximate=False)
        for double in self.doublings[-1:]:
            x_BxhxwxD = double(x_BxhxwxD)
        return x_BxhxwxD
