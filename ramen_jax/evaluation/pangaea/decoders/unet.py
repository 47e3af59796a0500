"""The U-Net baseline, trained from scratch on the pixels: the bar that every pretrained encoder must pass.

It takes the image itself as its only level, [B, H, W, C], or [B, T, H, W, C] where it has several dates: merged on the
channels before the first convolution, or encoded apart and compared (siamese). The output has the image's size.

Shape letters: B places, T dates, H, W pixels, C bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.evaluation.pangaea.decoders.layers import ConvNorm, Dense, Double, Size, max_pool, resize

TOPOLOGY = (64, 128, 256, 512)


class UNet(nnx.Module):
    """Pixels -> [B, H, W, outputs] float32.

    Args:
        merge: `single` (one date), `channels` (all dates stacked on the channels, then brought back to `bands`),
            `difference` or `concatenation` of the features of dates 0 and 1.
    """

    def __init__(
        self,
        bands: int,
        outputs: int,
        *,
        merge: str,
        dates: int,
        topology: Sequence[int],
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.merge = merge
        if merge == "channels":
            self.dates_to_bands = DoubleConv(bands * dates, bands, dtype=dtype, rngs=rngs)
        self.first = DoubleConv(bands, topology[0], dtype=dtype, rngs=rngs)
        steps = itertools.pairwise([*topology, topology[-1]])
        self.down = nnx.List([DoubleConv(a, b, dtype=dtype, rngs=rngs) for a, b in steps])
        # The coarse map and its skip have one width at every step up; the finest step keeps its width.
        widths = [2 * width if merge == "concatenation" else width for width in topology]
        self.up = nnx.List(
            [
                Up(widths[i], widths[max(i - 1, 0)], dtype=dtype, rngs=rngs)
                for i in reversed(range(len(widths)))
            ]
        )
        self.head = Dense(widths[0], outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, levels: Sequence[jax.Array], size: Size, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        del key
        (pixels,) = levels
        if self.merge in ("difference", "concatenation"):
            pairs = zip(self._encode(pixels[:, 0], train), self._encode(pixels[:, 1], train), strict=True)
            if self.merge == "difference":
                features = [second - first for first, second in pairs]
            else:
                features = [jnp.concatenate(pair, axis=-1) for pair in pairs]
        elif self.merge == "channels":
            # Channel-major: all dates of the first band, then all of the second.
            stacked_BxHxWxCT = jnp.moveaxis(pixels, 1, -1).reshape(*pixels.shape[:1], *pixels.shape[2:4], -1)
            features = self._encode(self.dates_to_bands(stacked_BxHxWxCT, train), train)
        else:
            features = self._encode(pixels, train)
        x = features[-1]
        for up, skip in zip(self.up, reversed(features[:-1]), strict=True):
            x = up(x, skip, train)
        return resize(self.head(x).astype(jnp.float32), size)

    def _encode(self, pixels_BxHxWxC: jax.Array, train: bool) -> list[jax.Array]:
        features = [self.first(pixels_BxHxWxC, train)]
        for down in self.down:
            features.append(down(max_pool(features[-1]), train))
        return features


class DoubleConv(nnx.Module):
    """3x3 convolution, BatchNorm, ReLU, twice."""

    def __init__(self, inputs: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.second(self.first(x, train), train)


class Up(nnx.Module):
    """Doubles the coarse map, pads it with zeros to the skip's size, joins both and convolves."""

    def __init__(self, width: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.double = Double(width, dtype=dtype, rngs=rngs)
        self.conv = DoubleConv(2 * width, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, coarse: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        x = self.double(coarse)
        missing = [skip.shape[axis] - x.shape[axis] for axis in (1, 2)]
        x = jnp.pad(x, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing), (0, 0)])
        return self.conv(jnp.concatenate([skip, x], axis=-1), train)
