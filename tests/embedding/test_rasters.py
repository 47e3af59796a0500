"""Rasters as `embed` reads them: what was not measured never counts, whichever way the file says it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp

from ramen_jax.console import UserError
from ramen_jax.embedding.rasters import Place, doubts, open_place
from ramen_jax.sensors import Sensor
from tests.embedding.rasters_made import HIDDEN, PIXEL, UTM, WAYS, eye, gaps, hide, scene, write

DIRECT, RESAMPLED = 20.0, 23.7  # target GSDs: whole pixels, and none


def read(
    *pairs: tuple[Path, Sensor], target_gsd: float = DIRECT
) -> tuple[list[np.ndarray], list[np.ndarray], Place]:
    """Per layer the physical values [T, C, H, W], 0 where nothing was measured, and what was [T, H, W]; the place."""
    with contextlib.ExitStack() as stack:
        place = open_place([(f"m{i}", *pair) for i, pair in enumerate(pairs)], target_gsd, stack, 8)
        images = [layer.read((0, place.rows, 0, place.columns)) for layer in place.layers]
        for layer in place.layers:
            place.notes.extend(doubts(layer))
    valid = [image.valid for image in images]
    values = [np.where(image.valid[:, None], image.values, 0).astype(float) for image in images]
    return values, valid, place


@pytest.mark.parametrize("target_gsd", [DIRECT, RESAMPLED])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bands", range(1, 13))
def test_every_way_to_mark_what_was_not_measured_counts(tmp_path, bands, way, target_gsd):
    """Catches masks looked for by the number of bands, and values that are mixed with no-data before it is masked."""
    values, keep = scene(bands), gaps()
    path, nodata = hide(tmp_path / "a.tif", values, keep, way)
    other, _ = hide(
        tmp_path / "b.tif", values, keep, way, hidden=HIDDEN if way in ("tag", "sensor", "one band") else 7
    )
    wanted, _ = hide(tmp_path / "wanted.tif", values, keep, "tag")
    (found,), (valid,), place = read((path, eye(bands, nodata)), target_gsd=target_gsd)
    (expected,), (measured,), _ = read((wanted, eye(bands)), target_gsd=target_gsd)
    np.testing.assert_array_equal(valid, measured)
    # Floats are not rounded to whole numbers when they are resampled.
    np.testing.assert_allclose(found, expected, atol=0.51 if way in ("nan", "infinite") else 0)
    np.testing.assert_array_equal(read((other, eye(bands, nodata)), target_gsd=target_gsd)[0][0], found)
    if target_gsd == DIRECT:
        np.testing.assert_array_equal(valid[0], keep)
        np.testing.assert_array_equal(found[0], np.where(keep, values, 0))
    else:
        assert "read at" in place.notes[-1]
        assert 0 < (~valid).sum() < valid.size
    assert found[np.broadcast_to(valid[:, None], found.shape)].min() >= 500


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("target_gsd", [DIRECT, RESAMPLED])
def test_what_a_second_raster_does_not_cover_was_not_measured(tmp_path, bands, target_gsd):
    first = write(tmp_path / "first.tif", scene(3))
    west = Affine(PIXEL, 0, 500_000.0, 0, -PIXEL, 5_600_000.0)
    for name, transform in (("west", west), ("shifted", west @ Affine.translation(0.5, 0.5))):
        half = write(tmp_path / f"{name}.tif", scene(bands, columns=20), transform=transform)
        _, (_, valid), _ = read((first, eye(3)), (half, eye(bands)), target_gsd=target_gsd)
        share = valid.mean()
        assert 0.45 < share < 0.58
        assert not valid[0, :, -15:].any()


@pytest.mark.parametrize("target_gsd", [DIRECT, RESAMPLED])
@pytest.mark.parametrize(("rows_up", "columns_left"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("way", ["mask band", "alpha", "tag"])
def test_rows_and_columns_may_run_either_way(tmp_path, rows_up, columns_left, way, target_gsd):
    values, keep = scene(4, rows=30), gaps(rows=30)
    north, _ = hide(tmp_path / "north.tif", values, keep, way)
    flip = (slice(None, None, -1 if rows_up else 1), slice(None, None, -1 if columns_left else 1))
    path, _ = hide(tmp_path / "other.tif", values[:, *flip], keep[flip], way)
    transform = Affine(
        -PIXEL if columns_left else PIXEL,
        0,
        500_000 + (PIXEL * 40 if columns_left else 0),
        0,
        PIXEL if rows_up else -PIXEL,
        5_600_000 - (PIXEL * 30 if rows_up else 0),
    )
    with rasterio.open(path, "r+") as file:
        file.transform = transform
    (found,), (valid,), place = read((path, eye(4)), target_gsd=target_gsd)
    (expected,), (measured,), wanted = read((north, eye(4)), target_gsd=target_gsd)
    with contextlib.ExitStack() as stack:
        layer = open_place([("m", path, eye(4))], target_gsd, stack, 8).layers[0]
        part, grid = layer.read((2, 9, 4, 11)), layer.grid
    window = (slice(grid.start(2), grid.end(9)), slice(grid.start(4), grid.end(11)))
    np.testing.assert_array_equal(part.valid, valid[:, *window])
    np.testing.assert_array_equal(np.where(part.valid[:, None], part.values, 0), found[:, :, *window])
    np.testing.assert_array_equal(valid, measured)
    np.testing.assert_allclose(found, expected, atol=1)
    assert place.transform == wanted.transform


@pytest.mark.parametrize("target_gsd", [DIRECT, RESAMPLED])
@pytest.mark.parametrize("way", ["tag", "mask band", "sensor"])
def test_scale_and_offset_tags_are_applied_and_told(tmp_path, way, target_gsd):
    values, keep = scene(3), gaps()
    path, nodata = hide(tmp_path / "a.tif", values, keep, way)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [0.5, 1.0, 2.0], [-100.0, 0.0, 7.0]
    (found,), (valid,), place = read((path, eye(3, nodata)), target_gsd=target_gsd)
    plain, _ = hide(tmp_path / "plain.tif", values, keep, way)
    (stored,), _, _ = read((plain, eye(3, nodata)), target_gsd=target_gsd)
    expected = stored * np.array([0.5, 1, 2])[:, None, None] + np.array([-100.0, 0, 7])[:, None, None]
    np.testing.assert_allclose(found, np.where(valid[:, None], expected, 0), rtol=1e-6)
    assert any(
        "scale [0.5, 1, 2] and offset [-100, 0, 7] of its tags are applied" in note for note in place.notes
    )


def test_a_sensor_that_has_the_scale_of_the_tags_applies_it_once(tmp_path):
    path = write(tmp_path / "a.tif", scene(2), scales=[0.1, 0.1], offsets=[-5.0, -5.0])
    plain = write(tmp_path / "plain.tif", scene(2))
    described = {**eye(2).to_dict(), "scale": 0.1, "offset": -5.0}
    (found,), _, place = read((path, Sensor.from_dict(described)))
    np.testing.assert_array_equal(found, read((plain, eye(2)))[0][0])
    assert not place.notes
    (found,), _, place = read((path, Sensor.from_dict(described | {"scale": 0.2})))
    np.testing.assert_array_equal(found, read((plain, eye(2)))[0][0])
    assert "says scale 0.2 and offset -5, which count" in place.notes[0]


def colours(*names: str) -> Sensor:
    known = {"blue": 490, "green": 560, "red": 665, "nir": 842}
    bands = {name: known[name] for name in names}
    return Sensor.from_dict({"name": "colours", "gsd": PIXEL, "bands": bands})


@pytest.mark.parametrize("target_gsd", [DIRECT, RESAMPLED])
@pytest.mark.parametrize(
    "descriptions",
    [
        ("Blue", "GREEN", "red", "nir"),
        ("nir", "red", "green", "blue"),
        ("red", "nir", "blue", "green"),
        ("blue", "green", "red", ""),  # the one that is left
        ("blue", "green", "red", "band 4"),
    ],
)
def test_described_bands_are_read_in_the_sensor_s_order(tmp_path, descriptions, target_gsd):
    sensor = colours("red", "green", "blue", "nir")
    values = scene(4)
    plain = [name.lower() if name and "band" not in name else "nir" for name in descriptions]
    order = [plain.index(band.name) for band in sensor.bands]
    path = write(tmp_path / "a.tif", values, descriptions=descriptions)
    (found,), _, place = read((path, sensor), target_gsd=target_gsd)
    (expected,), _, _ = read((write(tmp_path / "b.tif", values[order]), sensor), target_gsd=target_gsd)
    np.testing.assert_array_equal(found, expected)
    assert any("its bands are described as" in note for note in place.notes)


def test_colours_tell_the_order_unless_they_are_those_that_writers_give_unasked(tmp_path):
    values = scene(3).astype(np.uint8)
    order = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    path = write(tmp_path / "a.tif", values, colours=order)
    (found,), _, _ = read((path, colours("red", "green", "blue")))
    np.testing.assert_array_equal(found[0], values[::-1])
    unasked = write(tmp_path / "b.tif", values)
    with rasterio.open(unasked) as file:
        assert file.colorinterp[0] == ColorInterp.red
    (found,), _, place = read((unasked, colours("nir", "red", "green")))  # a false-colour picture
    np.testing.assert_array_equal(found[0], values)
    assert not place.notes


def test_names_that_are_not_the_sensor_s_are_told(tmp_path):
    path = write(tmp_path / "a.tif", scene(2), descriptions=("B04", "B03"))
    assert "which are no names of sensor 'colours'" in read((path, colours("green", "red")))[2].notes[0]
    numbered = write(tmp_path / "b.tif", scene(2), descriptions=("Band 1", "Band 2"))
    assert not read((numbered, colours("green", "red")))[2].notes


def test_bands_are_found_among_more(tmp_path):
    path = write(tmp_path / "a.tif", scene(4), descriptions=("B01", "B04", "B03", "cloud"))
    sensor = Sensor.from_dict({"name": "two", "gsd": PIXEL, "bands": {"B3": 560, "B4": 665}})
    (found,), _, _ = read((path, sensor))
    np.testing.assert_array_equal(found[0], scene(4)[[2, 1]])


def refused(tmp_path: Path, sensor: Sensor, values: np.ndarray, **how: Any) -> str:
    path = write(tmp_path / "refused.tif", values, **how)
    with pytest.raises(UserError) as caught:
        read((path, sensor))
    assert "refused.tif" in str(caught.value)
    return str(caught.value)


def test_what_is_no_measurement_of_the_sensor_is_refused(tmp_path):
    half = refused(tmp_path, colours("red", "green", "blue"), scene(3), descriptions=("nir", "green", "red"))
    assert "band 3 is described as 'red', but band 3 of sensor 'colours' is 'blue'" in half
    for dtype in ("complex64", "complex_int16"):
        told = refused(tmp_path, eye(2), scene(2).astype(np.complex64), dtype=dtype)
        assert "complex numbers" in told
    opaque = np.full((1, 40, 40), 255, np.uint8)
    picture = np.concatenate([scene(3).astype(np.uint8), opaque])
    names = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    assert "has 3 bands and an alpha band, sensor 'colours' has 4" in refused(
        tmp_path, colours("red", "green", "blue", "nir"), picture, colours=names
    )
    indices = scene(1).astype(np.uint8)
    path = write(tmp_path / "table.tif", indices, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(UserError, match="colour table"):
        read((path, eye(1)))
    points = [
        rasterio.control.GroundControlPoint(r, c, 500_000 + 10 * c, 5_600_000 - 10 * r)
        for r in (0, 40)
        for c in (0, 40)
    ]
    told = refused(tmp_path, eye(2), scene(2), gcps=points, transform=None, crs=UTM)
    assert "ground control points only" in told
    assert "gdalwarp -t_srs" in told


def test_a_container_of_several_rasters_is_refused_with_their_names(tmp_path):
    with rasterio.Env() as env:
        if "netCDF" not in env.drivers():
            pytest.skip("needs GDAL's netCDF driver")
    flat = write(tmp_path / "flat.tif", scene(2))
    rasterio.shutil.copy(flat, tmp_path / "two.nc", driver="netCDF")
    with pytest.raises(
        UserError,
        match=r"container of 2 rasters \(subdatasets or variables Band1, Band2\); .*gdal_translate 'netcdf:",
    ):
        read((tmp_path / "two.nc", eye(2)))
    one, _ = hide(tmp_path / "one.tif", scene(1).astype(np.int16), gaps(), "tag", hidden=-9999)
    rasterio.shutil.copy(one, tmp_path / "one.nc", driver="netCDF")
    (found,), (valid,), _ = read((tmp_path / "one.nc", eye(1)))
    np.testing.assert_array_equal(valid[0], gaps())
    np.testing.assert_array_equal(found[0], np.where(gaps(), scene(1), 0))


def test_a_place_that_its_coordinate_system_does_not_know_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", scene(2), crs="EPSG:4326")
    with pytest.raises(UserError, match="cannot be turned into longitude and latitude; is its CRS right"):
        read((path, eye(2)))


def test_a_fourth_band_that_a_writer_calls_alpha_is_read_and_told(tmp_path):
    """GDAL tags the last of four 8-bit bands as alpha unless it is told otherwise."""
    values = scene(4).astype(np.uint8)
    path = write(tmp_path / "a.tif", values)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    for target_gsd in (DIRECT, RESAMPLED):
        _, (valid,), place = read((path, eye(4)), target_gsd=target_gsd)
        assert valid.all()
        assert "tagged as alpha, but its values are no mask" in place.notes[0]
    np.testing.assert_array_equal(read((path, eye(4)))[0][0][0], values)
    soft = np.linspace(0, 255, 1600).reshape(1, 40, 40).astype(np.uint8)
    names = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    feathered = write(tmp_path / "b.tif", np.concatenate([values[:3], soft]), colours=names)
    _, (valid,), place = read((feathered, eye(3)))
    np.testing.assert_array_equal(valid[0], soft[0] > 0)
    assert "tagged as alpha; where it is 0, nothing was measured" in place.notes[0]


def test_the_units_of_a_series_must_agree(tmp_path):
    """The odd date is named, wherever it stands; catches a check of the middle date alone."""
    for odd in range(3):
        folder = tmp_path / f"{odd}"
        for index, day in enumerate(("2021-01-10", "2021-04-10", "2021-08-10")):
            values = scene(2, seed=index).astype(np.float32) / (10_000 if index == odd else 1)
            write(folder / f"{day}.tif", values)
        _, _, place = read((folder, eye(2)))
        wanted = ("2021-01-10", "2021-04-10", "2021-08-10")[odd]
        assert any(note.startswith(f"{wanted}.tif: values of about") for note in place.notes)
    write(folder / "2021-09-10.tif", scene(2, seed=5))
    assert any("are the units of the series mixed" in note for note in read((folder, eye(2)))[2].notes)


def test_a_truncated_raster_is_named(tmp_path):
    for name, how in (
        ("raw", {}),
        ("packed", {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
    ):
        path = write(tmp_path / f"{name}.tif", scene(4), **how)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        for target_gsd in (DIRECT, RESAMPLED):
            with pytest.raises(UserError, match=rf"{name}\.tif: cannot be read as a raster, truncated"):
                read((path, eye(4)), target_gsd=target_gsd)
