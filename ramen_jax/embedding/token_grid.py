"""How many tokens a place has and which pixels lie under them: arithmetic alone, no raster is opened.

Windows of tokens begin where pixels of every layer begin too, and end there or with the grid. The number of tokens that
a window's pixels give is `sampling.grid_size`'s, as everywhere; a pixel size is only taken if that number is right for
the whole grid, so that no two roundings can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ramen_jax import sampling
from ramen_jax.console import USAGE, UserError
from ramen_jax.limits import size

TOLERANCE = 1e-6
# A hair more than the pixel size, so that the truncation of a whole number of tokens never loses one.
HAIR = 1 + 1e-9


@dataclass(frozen=True)
class LayerGrid:
    """Pixels of one layer: metres per pixel at which it is read, and (rows, columns) that cover the place."""

    working_gsd: float
    height: int
    width: int
    pixels_per_token: float

    @property
    def told_gsd(self) -> float:
        """The pixel size that the model is told."""
        return self.working_gsd * HAIR

    def start(self, token: int) -> int:
        """The first pixel of a token at which a window may begin."""
        return round(token * self.pixels_per_token)

    def end(self, token: int) -> int:
        """The pixel after the last one that has a part in the tokens before this one."""
        return max(math.ceil(token * self.pixels_per_token - TOLERANCE), 1)


@dataclass(frozen=True)
class TokenGrid:
    """Tokens (rows, columns) of a place; windows begin at multiples of `step` tokens."""

    target_gsd: float
    rows: int
    columns: int
    step: int
    layers: tuple[LayerGrid, ...]


def tokens_over(metres: float, target_gsd: float) -> int:
    """Whole tokens along a side of a place."""
    return math.floor(metres / target_gsd + TOLERANCE)


def plan_grid(
    extent: tuple[float, float], gsds: Sequence[float], target_gsd: float, max_step: int
) -> TokenGrid:
    """The token grid over a place of (down, across) metres whose layers have pixels of these sizes.

    Raises:
        UserError: a target GSD larger than the place, or one that asks for more than `sampling.FINEST` tokens per
            pixel.
    """
    if not (target_gsd > 0 and math.isfinite(target_gsd)):
        raise UserError(f"the target GSD is {target_gsd:g}, expected metres per token above 0", USAGE)
    finest = gsds[0] / sampling.FINEST
    if target_gsd < finest:
        rows_asked, columns_asked = (side / target_gsd for side in extent)
        cells = rows_asked * columns_asked
        raise UserError(
            f"target GSD {target_gsd:g} m asks for {cells:,.0f} cells, {rows_asked:,.0f} x {columns_asked:,.0f}, "
            f"{size(4.0 * cells)} for each feature, over pixels of {gsds[0]:g} m; the limit is {sampling.FINEST} cells "
            f"per pixel and axis, a target GSD of at least {finest:g} m (is it given in metres?)",
            USAGE,
        )
    rows, columns = (tokens_over(side, target_gsd) for side in extent)
    if rows < 1 or columns < 1:
        raise UserError(
            f"target GSD {target_gsd:g} m is larger than the image, {extent[1]:g} x {extent[0]:g} m; use at most "
            f"{min(extent):g} m",
            USAGE,
        )
    step = 1
    layers: list[LayerGrid] = []
    for gsd in gsds:
        # Only the first layer's pixels decide how many tokens the model sees.
        exact = None if layers else (rows, columns)
        working, layer_step, pixels_per_token = working_gsd(gsd, target_gsd, step, max_step, exact)
        step = math.lcm(step, layer_step)
        height, width = (math.ceil(side / working - TOLERANCE) for side in extent)
        layers.append(LayerGrid(working, height, width, pixels_per_token))
    return TokenGrid(target_gsd, rows, columns, step, tuple(layers))


def working_gsd(
    gsd: float, target_gsd: float, step: int, max_step: int, exact: tuple[int, int] | None = None
) -> tuple[float, int, float]:
    """(pixel size, the given one if it can be; tokens after which pixels and tokens meet; pixels per token).

    `exact`: tokens (rows, columns) that the pixels under the whole grid must give.
    """
    ratio = target_gsd / gsd
    for tokens in range(1, max_step + 1):
        pixels = tokens * ratio
        if round(pixels) >= 1 and abs(pixels - round(pixels)) < TOLERANCE * max(pixels, 1):
            per_token = round(pixels) / tokens
            # A pixel size that is a hair off a whole number is taken for it, so that it never adds up to a pixel.
            working = gsd if abs(target_gsd / per_token / gsd - 1) < 1e-12 else target_gsd / per_token
            if math.lcm(step, tokens) <= max_step and _gives(working, per_token, target_gsd, exact):
                return working, tokens, per_token
            break
    if ratio >= 1:
        return target_gsd / round(ratio), 1, float(round(ratio))
    tokens = step * max(round(1 / (ratio * step)), 1)
    if tokens <= max_step and _gives(target_gsd * tokens, 1 / tokens, target_gsd, exact):
        return target_gsd * tokens, tokens, 1 / tokens
    return target_gsd, 1, 1.0


def _gives(working: float, pixels_per_token: float, target_gsd: float, exact: tuple[int, int] | None) -> bool:
    """Whether the pixels under that many tokens give that many tokens."""
    layer = LayerGrid(working, 0, 0, pixels_per_token)
    return exact is None or all(
        sampling.grid_size(layer.end(tokens), layer.told_gsd, target_gsd) == tokens for tokens in exact
    )
