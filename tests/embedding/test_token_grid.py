"""One function decides the grid: the pixels of every window give exactly the tokens that were asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ramen_jax import sampling
from ramen_jax.console import UserError
from ramen_jax.embedding.tiles import Tiling
from ramen_jax.embedding.token_grid import plan_grid, tokens_over

GSDS = st.one_of(
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 1.6, 2.5, 5.0, 10.0, 10.24, 20.0, 30.0, 60.0]),
    st.floats(0.05, 100, allow_nan=False),
)
PIXELS = st.one_of(st.sampled_from([10, 64, 65, 80, 101, 128, 256, 512]), st.integers(1, 3000))
# Round numbers of metres, decimals, and multiples of the pixel that are a hair off.
RATIOS = st.one_of(
    st.sampled_from([0.5, 1 / 3, 0.7, 1.0, 1.5, 2.5, 3.125, 4.5, 5.5, 7.2, 7.31, 7.4375, 11.9]),
    st.integers(1, 40).map(lambda whole: whole * (1 + 3e-7)),
    st.integers(1, 40).map(lambda whole: whole * (1 - 3e-7)),
    st.floats(1 / 40, 200, allow_nan=False),
)


@settings(max_examples=400, deadline=None)
@given(
    *(PIXELS, PIXELS, GSDS, RATIOS, st.lists(GSDS, max_size=2), st.integers(1, 16), st.integers(1, 60)),
    st.sampled_from([1.0, 1.0, 1.3, 0.77]),
)
def test_every_window_gives_the_tokens_asked_for(height, width, gsd, ratio, others, max_step, tile, stretch):
    """Catches `round` in the place of `ceil` at a window's end, and a step that only fits inside the grid."""
    target = gsd * ratio
    extent = (height * gsd, width * gsd * stretch)  # stretched: pixels that are not square on the ground
    gsds = [gsd, *others]
    assume(min(tokens_over(side, target) for side in extent) >= 1)
    assume(target >= gsd / sampling.FINEST)
    grid = plan_grid(extent, gsds, target, max_step)
    assert (grid.rows, grid.columns) == tuple(tokens_over(side, target) for side in extent)
    assert grid.step <= max_step
    first = grid.layers[0]
    for tokens, pixels in ((grid.rows, first.height), (grid.columns, first.width)):
        size, overlap = (-(-n // grid.step) * grid.step for n in (max(tile, 2), tile // 2))
        for start, end in Tiling(tokens, size, min(overlap, size - grid.step), grid.step).spans():
            count = first.end(end) - first.start(start)
            assert sampling.grid_size(count, first.told_gsd, target) == end - start
            assert first.end(end) <= pixels
            for layer in grid.layers:
                # Every window begins on a whole pixel of every layer, so that neighbours read the same pixels.
                assert start * layer.pixels_per_token == pytest.approx(layer.start(start), abs=1e-4)
                assert layer.end(end) * layer.working_gsd >= end * target * (1 - 1e-6)


@settings(max_examples=300, deadline=None)
@given(st.floats(3.3, 60, allow_nan=False), st.sampled_from([(80, 1.6), (64, 10.0), (65, 10.0), (101, 10.0)]))
def test_any_target_gsd_below_the_image_works(target, image):
    pixels, gsd = image
    grid = plan_grid((pixels * gsd,) * 2, [gsd], target, 16)
    assert grid.rows == math.floor(pixels * gsd / target + 1e-6)
    assert grid.layers[0].working_gsd == pytest.approx(gsd, rel=0.5) or target < gsd


@pytest.mark.parametrize("target", [0.001, 1e-4, 1e-12, 1e-320])
def test_a_target_gsd_far_below_the_pixel_is_refused_with_figures(target):
    with pytest.raises(UserError, match=r"cells, .* over pixels of 1.6 m; the limit is 64"):
        plan_grid((102.4, 102.4), [1.6], target, 16)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_gsd_must_be_metres(target):
    with pytest.raises(UserError, match="above 0"):
        plan_grid((102.4, 102.4), [1.6], target, 16)
