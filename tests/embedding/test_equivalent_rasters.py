"""Whatever combination of declarations a file has, it reads as its plain twin: north up, physical, NaN for no data."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from ramen_jax.embedding.rasters import open_place
from ramen_jax.sensors import Sensor
from tests.embedding.rasters_made import PIXEL, eye, scene, write

ROWS, COLUMNS = 24, 32
# (what says so, first row, first column, rows, columns)
HOLES = st.tuples(
    st.sampled_from(["tag", "sensor", "nan", "mask", "alpha"]),
    *(st.integers(0, ROWS - 3), st.integers(0, COLUMNS - 3), st.integers(1, 9), st.integers(1, 9)),
)
HIDDEN = {"tag": 30_000, "sensor": 31_000, "nan": np.nan, "mask": 29_000, "alpha": 28_000}


def read(path: Path, sensor: Sensor, target_gsd: float) -> tuple[np.ndarray, np.ndarray]:
    with contextlib.ExitStack() as stack:
        place = open_place([("m", path, sensor)], target_gsd, stack, 8)
        image = place.layers[0].read((0, place.rows, 0, place.columns))
    return np.where(image.valid[0], image.values[0].astype(float), 0), image.valid[0]


def spoil(
    values: np.ndarray, holes: list[Any], band: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(values with what hides the holes, what is left, the masks of the file)."""
    stored, keep = values.copy(), np.ones((ROWS, COLUMNS), bool)
    masks: dict[str, np.ndarray] = {}
    for way, row, column, rows, columns in holes:
        if way == "nan" and values.dtype.kind != "f":
            continue
        where = (slice(row, row + rows), slice(column, column + columns))
        stored[(slice(None) if way in ("mask", "alpha") else band, *where)] = HIDDEN[way]
        keep[where] = False
        if way in ("mask", "alpha"):
            masks.setdefault(way, np.ones((ROWS, COLUMNS), bool))[where] = False
    return stored, keep, masks


@settings(max_examples=150, deadline=None)
@given(
    bands=st.integers(1, 6),
    dtype=st.sampled_from(["uint16", "int16", "int32", "float32", "float64"]),
    holes=st.lists(HOLES, max_size=3),
    band=st.integers(0, 5),
    flips=st.tuples(st.booleans(), st.booleans()),
    units=st.sampled_from([(1.0, 0.0), (0.5, -100.0), (2.0, 7.0)]),
    seed=st.integers(0, 99),
    target_gsd=st.sampled_from([20.0, 25.0, 17.3, 6.0]),
)
def test_a_file_reads_as_its_plain_twin(bands, dtype, holes, band, flips, units, seed, target_gsd):
    values = scene(bands, ROWS, COLUMNS, seed).astype(dtype)
    stored, keep, masks = spoil(values, holes, band % bands)
    permutation = np.random.default_rng(seed).permutation(bands)
    how: dict[str, Any] = {"descriptions": [f"Band_{i}" for i in permutation]}
    colours = [ColorInterp.gray, *[ColorInterp.undefined] * (bands - 1)]
    stored = stored[permutation]
    if "alpha" in masks:
        # A file has a mask or an alpha band: GDAL shows one of them.
        masks = {"alpha": masks["alpha"] & masks.pop("mask", True)}
        stored = np.concatenate([stored, masks["alpha"][None].astype(dtype) * 255])
        colours, how["descriptions"] = [*colours, ColorInterp.alpha], [*how["descriptions"], "opacity"]
    how["scales"], how["offsets"] = [units[0]] * len(stored), [units[1]] * len(stored)
    if any(way == "tag" for way, *_ in holes):
        how["nodata"] = HIDDEN["tag"]
    sensor = eye(bands, HIDDEN["sensor"])
    up, left = flips
    transform = Affine(
        *(-PIXEL if left else PIXEL, 0, 500_000 + PIXEL * COLUMNS * left),
        *(0, PIXEL if up else -PIXEL, 5_600_000 - PIXEL * ROWS * up),
    )
    flip = (slice(None, None, -1 if up else 1), slice(None, None, -1 if left else 1))
    mask = masks["mask"][flip].astype(np.uint8) * 255 if "mask" in masks else None
    twin = np.where(keep, values * units[0] + units[1], np.nan).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "a.tif", stored[:, *flip], mask=mask, colours=colours, transform=transform, **how
        )
        found, valid = read(path, sensor, target_gsd)
        expected, measured = read(write(Path(folder) / "twin.tif", twin), eye(bands), target_gsd)
    np.testing.assert_array_equal(valid, measured)
    # Whole numbers stay whole when they are resampled, before the scale is applied.
    rounding = 0.51 * units[0] if np.dtype(dtype).kind in "iu" else 1e-2
    np.testing.assert_allclose(found, expected, atol=rounding)
