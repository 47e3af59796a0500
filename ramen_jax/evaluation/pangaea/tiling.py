"""Large images in tiles: evenly spread, overlapping just enough to fit, logits averaged where they overlap.

    tiles = Tiles.of(height=512, width=512, side=120)
    logits = [decode(tile) for tile in tiles.cut(image)]        # image [..., H, W], tiles [..., side, side]
    merged = tiles.merge(jnp.stack(logits))                     # [B, H, W, C]

Nothing is padded: the last tile ends where the image ends. Logits, not probabilities, are averaged, without a window.

Shape letters: N tiles (row by row), B places, S side of a tile, H, W pixels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.console import DATA, UserError


def origins(length: int, side: int) -> tuple[int, ...]:
    """First pixel of each tile along one axis: from 0 to length - side in equal steps, halves to the even pixel.

    Raises:
        UserError: an image smaller than the tile.
    """
    if length < side:
        raise UserError(f"an image of {length} pixels is smaller than the tile of {side} pixels", DATA)
    steps = math.ceil(length / side) - 1
    return tuple(round(Fraction((length - side) * i, max(steps, 1))) for i in range(steps + 1))


@dataclass(frozen=True)
class Tiles:
    """The tiles of one image size. `rows` and `columns` are the first pixels along each axis."""

    height: int
    width: int
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, height: int, width: int, side: int) -> Tiles:
        return cls(height, width, side, origins(height, side), origins(width, side))

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(first row, first column) of every tile, row by row."""
        return [(row, column) for row in self.rows for column in self.columns]

    @property
    def count_HxW(self) -> np.ndarray:
        """How many tiles cover each pixel, float32."""
        covered = [np.zeros(size, np.float32) for size in (self.height, self.width)]
        for axis, starts in zip(covered, (self.rows, self.columns), strict=True):
            for start in starts:
                axis[start : start + self.side] += 1
        return np.outer(*covered)

    def cut(self, image: np.ndarray) -> list[np.ndarray]:
        """Views [..., side, side] of [..., H, W], row by row; the last two axes are the pixels'."""
        if image.shape[-2:] != (self.height, self.width):
            raise ValueError(f"tiles of {self.height} x {self.width} pixels, found {image.shape}")
        return [image[..., y : y + self.side, x : x + self.side] for y, x in self.corners]

    def merge(self, logits_NxBxSxSxC: jax.Array, *, published: bool = False) -> jax.Array:
        """The mean over the tiles that cover each pixel, [B, H, W, C].

        `published` repeats a slip of the benchmark: it looks for the tile of row i and column j at place
        `rows * i + j` instead of `columns * i + j`, which is the same tile on square images only. Wide images get
        wrong tiles; for tall ones some places do not exist.

        Raises:
            UserError: `published` and an image with more rows of tiles than columns.
        """
        stride = len(self.rows) if published else len(self.columns)
        if stride * (len(self.rows) - 1) + len(self.columns) > len(self):
            raise UserError(
                f"the published way to merge {len(self.rows)} x {len(self.columns)} tiles reads tiles that do not "
                "exist; use the corrected protocol for images taller than wide",
                DATA,
            )
        _, batch, side, _, channels = logits_NxBxSxSxC.shape
        merged = jnp.zeros((batch, self.height, self.width, channels), jnp.float32)
        for i, y in enumerate(self.rows):
            for j, x in enumerate(self.columns):
                tile = logits_NxBxSxSxC[stride * i + j]
                merged = merged.at[:, y : y + side, x : x + side].add(tile)
        return merged / self.count_HxW[None, :, :, None]
