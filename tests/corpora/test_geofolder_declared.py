"""prepare reads a folder of rasters as `embed` does: what files declare counts, and where they lie is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, load_description, open_corpus
from ramen_jax.corpora.placement import Footprint, misplaced, wrong_pixel_size
from ramen_jax.samples import Sample
from tests.embedding.rasters_made import PIXEL, UTM, WAYS, eye, gaps, hide, scene, write

NORTH_UP = Affine(PIXEL, 0, 500_000.0, 0, -PIXEL, 5_600_000.0)


def corpus(tmp_path: Path, sensors: dict[str, Any], modalities: dict[str, Any], **more: Any) -> Any:
    """A corpus over tmp_path/source; modalities as name -> options, patterns NAME/{id}.tif."""
    described = {
        name: {k: v for k, v in sensor.to_dict().items() if k != "name"} for name, sensor in sensors.items()
    }
    (tmp_path / "sensors.yaml").write_text(yaml.safe_dump(described))
    entries = {
        name: {"sensor": name, "pattern": f"{name}/{{id}}.tif", **options}
        for name, options in modalities.items()
    }
    content = {"kind": "geofolder", "sensors": "sensors.yaml", "modalities": entries, **more}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return open_corpus(load_description(tmp_path / "corpus.yaml"), tmp_path / "source")


def read(tmp_path: Path, sensor: Any, **options: Any) -> tuple[Sample, Any]:
    opened = corpus(tmp_path, {"eye": sensor}, {"eye": options})
    return opened.read("p", "train")[0], opened


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bands", range(1, 13))
def test_every_way_to_mark_what_was_not_measured_counts(tmp_path, bands, way):
    values, keep = scene(bands), gaps()
    _, nodata = hide(tmp_path / "source/eye/p.tif", values, keep, way)
    image = read(tmp_path, eye(bands, nodata))[0].images["eye"]
    np.testing.assert_array_equal(image.valid[0], keep)
    np.testing.assert_array_equal(image.values[0][:, keep], values[:, keep])
    assert np.isfinite(image.values).all()


def test_alpha_is_never_near_infrared(tmp_path):
    picture = np.concatenate([scene(3).astype(np.uint8), np.full((1, 40, 40), 255, np.uint8)])
    names = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    write(tmp_path / "source/eye/p.tif", picture, colours=names)
    with pytest.raises(UserError, match="has 3 bands and an alpha band, sensor 'eye' has 4"):
        read(tmp_path, eye(4))
    image = read(tmp_path, eye(3))[0].images["eye"]
    np.testing.assert_array_equal(image.values[0], picture[:3])


def test_scale_and_offset_tags_become_the_sensor_s(tmp_path):
    """Records keep the stored values; the statistics and the model see the physical ones."""
    write(tmp_path / "source/eye/p.tif", scene(2), scales=[0.1] * 2, offsets=[-5.0] * 2)
    sample, opened = read(tmp_path, eye(2))
    np.testing.assert_array_equal(sample.images["eye"].values[0], scene(2))
    assert (opened.modalities[0].sensor.scale, opened.modalities[0].sensor.offset) == (0.1, -5.0)
    assert "scale 0.1 and offset -5 of its tags are applied" in opened.notes[0]
    write(tmp_path / "source/eye/q.tif", scene(2))
    write(tmp_path / "source/eye/r.tif", scene(2), scales=[0.1] * 2, offsets=[-5.0] * 2)
    _, opened = read(tmp_path, eye(2))
    with pytest.raises(
        BadItem, match=r"q\.tif: its tags say no scale and offset, the other files of eye scale 0.1"
    ):
        opened.read("q", "train")
    _, opened = read(tmp_path, eye(2), scale=1.0)
    assert opened.modalities[0].sensor.scale == 1
    assert "the description's scale 1 and offset 0 count" in opened.notes[-1]


def test_scales_that_differ_from_band_to_band_are_applied_when_floats_are_stored(tmp_path):
    write(tmp_path / "source/eye/p.tif", scene(2), scales=[0.5, 2.0], offsets=[0.0, 1.0])
    with pytest.raises(UserError, match="differ from band to band; say `dtype: float32`"):
        read(tmp_path, eye(2))
    image = read(tmp_path, eye(2), dtype="float32")[0].images["eye"]
    expected = scene(2) * np.array([0.5, 2.0])[:, None, None] + np.array([0.0, 1.0])[:, None, None]
    np.testing.assert_allclose(image.values[0], expected)


def test_bands_in_another_order_are_read_in_the_sensor_s(tmp_path):
    write(tmp_path / "source/eye/p.tif", scene(2), descriptions=["band 1", "band 0"])
    sample, opened = read(tmp_path, eye(2))
    np.testing.assert_array_equal(sample.images["eye"].values[0], scene(2)[::-1])
    assert "bands 2, 1 are read" in opened.notes[0]


@pytest.mark.parametrize(("rows_up", "columns_left"), [(True, False), (False, True)])
def test_rows_and_columns_may_run_either_way(tmp_path, rows_up, columns_left):
    other = Affine(
        *(-PIXEL if columns_left else PIXEL, 0, 500_000 + (400 if columns_left else 0)),
        *(0, PIXEL if rows_up else -PIXEL, 5_600_000 - (400 if rows_up else 0)),
    )
    flip = (slice(None, None, -1 if rows_up else 1), slice(None, None, -1 if columns_left else 1))
    write(tmp_path / "source/eye/p.tif", scene(2))
    write(tmp_path / "source/dem/p.tif", scene(1)[:, *flip], transform=other)
    opened = corpus(tmp_path, {"eye": eye(2), "dem": eye(1)}, {"eye": {}, "dem": {}})
    np.testing.assert_array_equal(opened.read("p", "train")[0].images["dem"].values[0], scene(1))


ELSEWHERE = {
    "5 km away": (
        {"transform": Affine.translation(5000, 0) @ NORTH_UP},
        "does not touch the ground of p.tif",
    ),
    "another zone": ({"crs": "EPSG:32632"}, "EPSG:32632"),
    "two pixels": ({"transform": NORTH_UP @ Affine.translation(2, 0)}, "a corner is 20 m"),
    "larger pixels": (
        {"transform": NORTH_UP @ Affine.scale(5)},
        "has pixels of 50 m, but its sensor has pixels of 10 m",
    ),
    "degrees": ({"crs": "EPSG:4326", "transform": Affine(1.4e-4, 0, 3, 0, -9e-5, 50)}, "does not touch"),
    "control points": ({"crs": None, "transform": None}, "ground control points only"),
}


@pytest.mark.parametrize("how", ELSEWHERE)
@pytest.mark.parametrize("crop", [None, 20])
def test_a_raster_elsewhere_is_rejected_with_the_reason(tmp_path, how, crop):
    profile, reason = ELSEWHERE[how]
    if how == "control points":
        point = rasterio.control.GroundControlPoint
        places = [
            point(row, column, 500_000 + 10 * column, 5_600_000 - 10 * row)
            for row in (0, 40)
            for column in (0, 40)
        ]
        profile = {"crs": UTM, "transform": None, "gcps": places}
    write(tmp_path / "source/eye/p.tif", scene(2))
    write(tmp_path / "source/dem/p.tif", scene(1), **profile)
    opened = corpus(tmp_path, {"eye": eye(2), "dem": eye(1)}, {"eye": {}, "dem": {}}, crop=crop)
    with pytest.raises(BadItem, match=rf"dem/p\.tif: .*{reason}"):
        opened.read("p", "train")


def test_warp_places_a_raster_when_that_is_asked_for(tmp_path):
    """Resampled to the first raster's grid; what it does not cover was not measured."""
    write(tmp_path / "source/eye/p.tif", scene(2))
    whole = scene(1, rows=80, columns=80)
    keep = np.ones((80, 80), bool)
    keep[20:30, 20:30] = False
    path, _ = hide(tmp_path / "source/dem/p.tif", whole, keep, "mask band")
    with rasterio.open(path, "r+") as file:
        file.transform = NORTH_UP @ Affine.translation(-10, -10)
    sensors, modalities = {"eye": eye(2), "dem": eye(1)}, {"eye": {}, "dem": {}}
    image = corpus(tmp_path, sensors, modalities, warp=True).read("p", "train")[0].images["dem"]
    np.testing.assert_array_equal(
        image.values[0][:, image.valid[0]], whole[:, 10:50, 10:50][:, image.valid[0]]
    )
    np.testing.assert_array_equal(image.valid[0], keep[10:50, 10:50])
    write(tmp_path / "source/dem/p.tif", scene(1), transform=NORTH_UP @ Affine.translation(20.5, 0))
    image = corpus(tmp_path, sensors, modalities, warp=True).read("p", "train")[0].images["dem"]
    assert 0.4 < image.valid.mean() < 0.6
    write(tmp_path / "source/dem/p.tif", scene(1), transform=Affine.translation(5000, 0) @ NORTH_UP)
    with pytest.raises(BadItem, match="no valid pixel at all"):
        corpus(tmp_path, sensors, modalities, warp=True).read("p", "train")
    with pytest.raises(UserError, match="warp is 'yes'"):
        corpus(tmp_path, sensors, modalities, warp="yes")


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path, dtype):
    write(tmp_path / "source/eye/p.tif", scene(2).astype(np.complex64), dtype=dtype)
    with pytest.raises(UserError, match=r"no readable file matches.*complex numbers"):
        read(tmp_path, eye(2), dtype="float32")


def test_mixed_units_within_a_series_are_rejected_with_the_odd_date(tmp_path):
    for index, date in enumerate(("20210102", "20210402", "20210802")):
        values = scene(2, seed=index, dtype="float32") / (10_000 if index == 2 else 1)
        write(tmp_path / f"source/eye/p_{date}.tif", values)
    opened = corpus(tmp_path, {"eye": eye(2)}, {"eye": {"pattern": "eye/{id}_{date}.tif"}})
    with pytest.raises(
        BadItem, match=r"p_20210802\.tif: values of about 0\.2.*the units of the series are mixed"
    ):
        opened.read("p", "train")


def test_two_files_of_one_date_are_no_series(tmp_path):
    for name in ("2021-04-02", "20210402", "20210802"):
        write(tmp_path / f"source/eye/p_{name}.tif", scene(2))
    opened = corpus(tmp_path, {"eye": eye(2)}, {"eye": {"pattern": "eye/{id}_{date}.tif"}})
    with pytest.raises(BadItem, match="same date"):
        opened.read("p", "train")


@settings(max_examples=100, deadline=None)
@given(
    shift=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    coarse=st.sampled_from([1, 2, 6]),
    zone=st.sampled_from([32631, 32632, 4326]),
)
def test_a_raster_belongs_to_a_place_up_to_half_a_pixel_of_the_coarser(shift, coarse, zone):
    """Positions are compared on the ground: in another coordinate system a place is the same only if it lies there."""
    first = Footprint("first", rasterio.crs.CRS.from_epsg(32631), NORTH_UP, 60, 60)
    pixel = PIXEL * coarse
    moved = Affine(pixel, 0, 500_000 + shift[0], 0, -pixel, 5_600_000 + shift[1])
    other = Footprint("other", rasterio.crs.CRS.from_epsg(zone), moved, 60 // coarse, 60 // coarse)
    distance = float(np.hypot(*shift))
    for ratio in (None, coarse):
        if zone != 32631:
            assert misplaced(other, first, ratio)
        elif distance <= pixel / 2 * 0.999:
            assert not misplaced(other, first, ratio)
        elif distance >= pixel / 2 * 1.001:
            assert "m off" in misplaced(other, first, ratio).replace("pixels) off", "m off")
    assert not misplaced(Footprint("plain", None, moved, 60, 60), first)
    if zone == 32631:
        assert bool(wrong_pixel_size(other, PIXEL)) == (coarse > 1)
        assert not wrong_pixel_size(other, pixel)
