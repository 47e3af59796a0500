"""Maps of the encoders: which blocks, which channels, which dates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.evaluation.encoders import Pixels, Pretrained, Raw, normalised, open_encoder, taps
from ramen_jax.inference.places import Place, token_maps
from ramen_jax.samples import Image, Sample
from ramen_jax.sensors import Sensor

OPTICAL = Sensor.from_dict({"name": "o", "gsd": 10.0, "bands": {"r": 665, "n": 842}}).with_statistics(
    [10, 20], [2, 4]
)
RADAR = Sensor.from_dict({"name": "r", "gsd": 10.0, "bands": {"vv": "asc_vv"}}).with_statistics([-10], [5])
SENSORS = {"optical": OPTICAL, "sar": RADAR}


def sample(dates=3, side=16, seed=0):
    rng = np.random.default_rng(seed)
    days = np.arange(1, dates + 1, dtype=np.int16)
    return Sample(
        "place",
        {
            name: Image(
                rng.normal(size=(dates, len(sensor.bands), side, side)).astype(np.float32),
                days,
                np.ones(len(sensor.bands), bool),
            )
            for name, sensor in SENSORS.items()
        },
    )


@pytest.mark.parametrize(
    ("trained", "asked", "expected"),
    [
        ("reference", "metric", "metric"),
        ("area", "metric", "area"),
        ("area", "reference", "reference"),
        ("area", None, "area"),
        ("metric", None, "metric"),
    ],
)
def test_a_model_reads_pixels_as_it_was_trained_to_where_coordinates_allow(trained, asked, expected, tiny):
    """(Mutant: a model of area averages judged on single pixels.)"""
    ramen = dataclasses.replace(tiny.encoder.ramen, recipe=tiny.encoder.ramen.recipe.but(sampling=trained))
    encoder = Pretrained("x", dataclasses.replace(tiny.encoder, ramen=ramen), asked)
    assert encoder.encoder.ramen.recipe.sampling == expected
    assert encoder.identity["recipe"]["sampling"] == expected


def test_taps_are_those_of_the_benchmark():
    assert taps(12) == (3, 5, 7, 11)
    assert taps(24) == (7, 11, 15, 23)
    assert taps(3)[-1] == 2
    assert all(0 <= tap < 3 for tap in taps(3))


def test_maps_of_all_modalities_in_the_order_of_the_task(tiny):
    """(Mutants: sorted modalities, layers without the final norm, channels before rows.)"""
    one = sample()
    (levels,) = tiny.levels([one], SENSORS, 40.0, series=False)
    assert levels.shape == (4, 4, 4, 2 * tiny.encoder.width)
    (batch,) = tiny.encoder.batches([Place(one, SENSORS, 40.0)])
    encoded = np.asarray(tiny.encoder.run(batch, tiny.taps))
    maps = token_maps(encoded[:, batch.found[0].row, batch.found[0].start :], batch.places[0])
    assert list(maps) == list(one.images)
    width = tiny.encoder.width
    assert np.array_equal(levels[-1, ..., :width], np.moveaxis(maps["optical"][-1], 0, -1))
    assert np.array_equal(levels[-1, ..., width:], np.moveaxis(maps["sar"][-1], 0, -1))


def test_each_date_by_itself(tiny):
    """Date t of the series is what the sample of that date alone gives."""
    series = sample()
    (levels,) = tiny.levels([series], SENSORS, 40.0, series=True)
    assert levels.shape[:2] == (4, 3)
    for date in range(3):
        images = {
            name: Image(i.values[date : date + 1], i.dates[date : date + 1], i.present)
            for name, i in series.images.items()
        }
        (alone,) = tiny.levels([Sample("one", images)], SENSORS, 40.0, series=False)
        np.testing.assert_allclose(levels[:, date], alone, atol=2e-5)


def test_raw_is_the_mean_of_the_footprint_and_the_spread_over_dates():
    one = sample()
    (levels,) = Raw().levels([one], SENSORS, 40.0, series=False)
    assert levels.shape[-1] == Raw().widths(SENSORS, 3, False)[0] == 6
    physical = normalised(one.images["optical"], OPTICAL)
    blocks = physical.reshape(3, 2, 4, 4, 4, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(levels[0, ..., :2], np.moveaxis(blocks.mean(0), 0, -1), atol=1e-5)
    np.testing.assert_allclose(levels[0, ..., 2:4], np.moveaxis(blocks.std(0), 0, -1), atol=1e-5)


def test_the_unet_gets_the_normalised_pixels():
    (levels,) = Pixels().levels([sample(dates=1)], SENSORS, 40.0, series=False)
    assert levels.shape == (1, 16, 16, 3)
    expected = (sample(dates=1).images["optical"].values[0, 1] - 20) / 4
    np.testing.assert_allclose(levels[0, ..., 1], expected, rtol=1e-5)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="no encoder 'rav'"):
        open_encoder("rav", None, "metric")
    with pytest.raises(UserError, match="--checkpoint is missing"):
        open_encoder("checkpoint", None, "metric")
    with pytest.raises(UserError):
        open_encoder("checkpoint", tmp_path / "nothing", "metric")
