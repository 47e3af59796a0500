"""The matrices between pixels and tokens: the reference's rules, true coordinates, and areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramen_jax.console import USAGE, UserError
from ramen_jax.sampling import POLICIES, down_matrix, grid_size, mask_index, up_matrix

SIZES = st.integers(1, 70)
GSDS = st.floats(0.2, 40.0)


@pytest.mark.parametrize(
    ("pixels", "gsd", "target", "grid"),
    [
        (512, 0.2, 3.0, 34),
        (512, 0.2, 20.0, 5),
        (64, 10.0, 20.0, 32),
        (64, 10.0, 100.0, 6),
        (263, 1.5, 5.0, 78),
    ],
)
def test_grids_of_the_paper(pixels: int, gsd: float, target: float, grid: int) -> None:
    assert grid_size(pixels, gsd, target) == grid


@pytest.mark.parametrize("target", [0.0, -3.0, float("nan"), float("inf")])
def test_a_gsd_is_a_positive_number(target: float) -> None:
    with pytest.raises(UserError, match="target GSD must be a positive number of metres"):
        grid_size(10, 1.0, target)


def test_an_empty_grid_says_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"leaves an empty grid.*at most 100 m") as caught:
        grid_size(10, 10.0, 101.0)
    assert caught.value.code == USAGE, "a command shows it as one line, not as a traceback"


def test_unknown_policy() -> None:
    with pytest.raises(
        ValueError, match="unknown sampling policy 'nearest'; choose one of reference, metric, area"
    ):
        down_matrix(4, 1.0, 2.0, 2, "nearest")


@given(pixels=SIZES, gsd=GSDS, target=GSDS, policy=st.sampled_from(POLICIES))
def test_every_output_is_an_average(pixels: int, gsd: float, target: float, policy: str) -> None:
    """Non-negative rows that sum to one, in both directions, for any size and GSD."""
    grid = max(1, int(pixels * gsd / target))
    for build, size in ((down_matrix, (grid, pixels)), (up_matrix, (pixels, grid))):
        before, factor = size[1], gsd / target if build is down_matrix else target / gsd
        if policy == "reference" and int(before * factor) < 1:
            with pytest.raises(UserError, match="leave nothing; the reference rule truncates"):
                build(pixels, gsd, target, grid, policy)
            continue
        matrix = build(pixels, gsd, target, grid, policy)
        assert matrix.shape == size
        assert matrix.dtype == np.float32
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    index = mask_index(pixels, gsd, target, grid, policy)
    assert index.shape == (pixels,)
    assert index.min() >= 0
    assert index.max() < grid
    assert (np.diff(index) >= 0).all()


def test_reference_is_the_identity_when_sizes_agree() -> None:
    """FLAIR-HUB's Sentinel-2, 10 px of 10.24 m, target 10 m: the scale is 1.024 and nothing moves."""
    np.testing.assert_array_equal(down_matrix(10, 10.24, 10.0, 10), np.eye(10, dtype=np.float32))
    assert not np.array_equal(down_matrix(10, 10.24, 10.0, 10, "metric"), np.eye(10))


def test_reference_decoder_resizes_twice() -> None:
    """Back to FLAIR-HUB's Sentinel-2 at 10 m: 10 tokens become 9 pixels and then 10; the last token is lost."""
    matrix = up_matrix(10, 10.24, 10.0, 10)
    assert matrix.shape == (10, 10)
    assert matrix[-1, -1] < 0.5


@pytest.mark.parametrize(
    ("pixels", "gsd", "target"), [(128, 0.8, 3.0), (39, 10.0, 7.0), (64, 10.0, 30.0), (10, 10.24, 3.0)]
)
def test_reference_is_pytorch(pixels: int, gsd: float, target: float) -> None:
    torch = pytest.importorskip(
        "torch", reason="compares with torch.nn.functional.interpolate: install torch"
    )
    interpolate = torch.nn.functional.interpolate
    grid = grid_size(pixels, gsd, target)
    for matrix, size, expected, factor in (
        (down_matrix(pixels, gsd, target, grid), pixels, grid, gsd / target),
        (up_matrix(pixels, gsd, target, grid), grid, pixels, target / gsd),
    ):
        image = torch.eye(size)[None, :, :, None].expand(1, size, size, size).contiguous()
        found = interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
        if found.shape[2] != expected:
            found = interpolate(found, size=(expected, expected), mode="bilinear")
        np.testing.assert_allclose(matrix, found[0, :, :, 0].T.numpy(), atol=2e-6)
    mask = torch.arange(grid, dtype=torch.float32)[None, None, :, None]
    nearest = interpolate(mask, size=(pixels, 1), mode="nearest")[0, 0, :, 0].numpy()
    np.testing.assert_array_equal(mask_index(pixels, gsd, target, grid), nearest)


@given(pixels=st.integers(8, 60), gsd=st.floats(0.5, 10.0), ratio=st.floats(0.3, 4.0))
def test_metric_reads_a_ramp_exactly(pixels: int, gsd: float, ratio: float) -> None:
    """A ramp in metres is read at the true centre of every token away from the border."""
    target = gsd * ratio
    grid = int(pixels / ratio)
    ramp = (np.arange(pixels) + 0.5) * gsd
    centres = (np.arange(grid) + 0.5) * target
    inner = (centres >= ramp[0]) & (centres <= ramp[-1])
    found = down_matrix(pixels, gsd, target, grid, "metric").astype(np.float64) @ ramp
    np.testing.assert_allclose(found[inner], centres[inner], rtol=1e-5)


def test_reference_misplaces_what_metric_does_not() -> None:
    """FLAIR-HUB aerial at 13 m: the decoder stretches 7 tokens, 91 m, over 102.4 m."""
    tokens = (np.arange(7) + 0.5) * 13.0
    pixels = (np.arange(512) + 0.5) * 0.2
    inner = slice(40, 420)
    metric = up_matrix(512, 0.2, 13.0, 7, "metric") @ tokens
    reference = up_matrix(512, 0.2, 13.0, 7) @ tokens
    np.testing.assert_allclose(metric[inner], pixels[inner], atol=1e-3)
    assert np.abs(reference[inner] - pixels[inner]).max() > 5.0


def test_area_averages_the_whole_footprint() -> None:
    image = np.random.default_rng(0).normal(size=60)
    found = down_matrix(60, 0.2, 2.0, 6, "area") @ image
    np.testing.assert_allclose(found, image.reshape(6, 10).mean(axis=1), atol=1e-6)
    reference = down_matrix(60, 0.2, 2.0, 6)
    assert ((reference > 0).sum(axis=1) <= 2).all(), "the reference reads two pixels of ten"


def test_matrices_are_shared_and_cannot_be_changed() -> None:
    matrix = down_matrix(20, 1.0, 2.0, 10)
    assert matrix is down_matrix(20, 1.0, 2.0, 10)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1.0
