"""rj.load, rj.Image, rj.cost: shapes, what must not matter, and the sentences a wrong input gets."""

from __future__ import annotations

import datetime
from pathlib import Path

import jax
import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax.api import Encoder
from ramen_jax.console import UserError
from ramen_jax.inference.images import day_of_year
from ramen_jax.sensors import Band, Sensor, sensor
from tests import exported

WIDTH = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return rj.load(exported.folder(tmp_path_factory.mktemp("api") / "tiny", "fixed"))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A series [T, C, H, W] as int16, as satellites deliver it."""
    return np.random.default_rng(0).integers(500, 3000, (3, 12, 16, 24)).astype(np.int16)


def test_maps_have_the_grid_of_the_target_gsd(model: Encoder, pixels: np.ndarray) -> None:
    features = model.encode(
        {"s2": rj.Image(pixels, dates=["2021-01-05", 100, 250])}, target_gsd=40, layers=(0, 2)
    )
    assert features.maps["s2"].shape == (WIDTH, 4, 6)
    assert features.cls.shape == (WIDTH,)
    np.testing.assert_array_equal(features.layers[1]["s2"], features.maps["s2"])
    assert not np.array_equal(features.layers[0]["s2"], features.maps["s2"])


def test_several_modalities_share_one_grid(model: Encoder, pixels: np.ndarray) -> None:
    radar = np.random.default_rng(1).normal(-12, 3, (2, 16, 24))
    features = model.encode({"s2": pixels[0], "s1": radar}, target_gsd=20)
    assert {name: grid.shape for name, grid in features.maps.items()} == {
        "s2": (WIDTH, 8, 12),
        "s1": (WIDTH, 8, 12),
    }


def test_frames_and_pixels_that_were_not_measured_change_nothing(model: Encoder, pixels: np.ndarray) -> None:
    clouded = pixels.copy()
    clouded[1] = 0  # the sensor's nodata in every band
    other = clouded.copy()
    other[1, 0] = 1  # measured now, but declared invalid
    valid = np.ones((3, 16, 24), bool)
    valid[1] = False
    days = [10, 100, 200]
    first = model.encode({"s2": rj.Image(clouded, days)}, 40).maps["s2"]
    second = model.encode({"s2": rj.Image(other, [10, 366, 200], valid=valid)}, 40).maps["s2"]
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, model.encode({"s2": rj.Image(pixels, days)}, 40).maps["s2"])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (1, 40, 1)])
def test_one_pixel_and_one_band_are_images(model: Encoder, shape: tuple[int, int, int]) -> None:
    one = Sensor("one", (Band("red", wavelength_nm=665),), 10.0, mean=(0.0,), std=(1.0,))
    features = model.encode({"s2": rj.Image(np.ones(shape, np.float32), sensor=one)}, target_gsd=10)
    assert features.maps["s2"].shape == (WIDTH, *shape[1:])
    assert np.isfinite(features.maps["s2"]).all()


def test_an_image_without_any_measurement_is_encoded_as_nothing(model: Encoder) -> None:
    features = model.encode({"dem": np.full((1, 16, 16), np.nan, np.float32)}, target_gsd=40)
    assert np.isfinite(features.maps["dem"]).all()


def test_cost_counts_what_xla_counts(model: Encoder, pixels: np.ndarray) -> None:
    predicted = rj.cost(model, {"s2": "place/s2", "s1": "place/s1"}, size=640, target_gsd=100)
    images = {
        "s2": rj.Image(np.zeros((12, 64, 64), np.int16)),
        "s1": rj.Image(np.zeros((2, 64, 64), np.float32)),
    }
    function, example = model.traceable(model.place(images, 100.0))
    compiled = jax.jit(function).lower(*example).compile()
    # XLA counts the body of a loop once: the scan over blocks, and the blocks of attention in rows above 128 tokens.
    blocks = model.depth
    analysed = compiled.cost_analysis()["flops"]
    tokens, width = predicted.tokens + 1, model.width
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    assert predicted.tokens == 2 * 6 * 6
    assert (predicted.rows, predicted.columns) == (6, 6)
    assert predicted.flops == pytest.approx(analysed + (blocks - 1) * block, rel=0.15)
    assert predicted.memory > 0
    assert "72 tokens" in str(predicted)


def test_cost_grows_with_detail_and_dates(model: Encoder) -> None:
    costs = [rj.cost(model, "sentinel2_l2a", (1280, 640), gsd).flops for gsd in (160, 80, 40, 20)]
    assert costs == sorted(costs)
    assert (
        rj.cost(model, "sentinel2_l2a", 1280, 40, dates=12).flops
        > rj.cost(model, "sentinel2_l2a", 1280, 40).flops
    )


def test_dates(model: Encoder) -> None:
    assert day_of_year("2020-12-31") == 366
    assert day_of_year(datetime.date(2021, 2, 1)) == 32
    with pytest.raises(UserError, match="not a date"):
        day_of_year("31.12.2020")


def test_wrong_inputs_are_told_in_one_sentence(model: Encoder, pixels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs dates"):
        rj.Image(pixels)
    with pytest.raises(UserError, match="2 dates for 3 frames"):
        rj.Image(pixels, [1, 2])
    with pytest.raises(UserError, match="found shape"):
        rj.Image(pixels[0, 0])
    with pytest.raises(UserError, match="has 3 bands, sensor 'sentinel2_l2a' has 12: B1, B2"):
        model.encode({"s2": pixels[0, :3]}, 40)
    with pytest.raises(UserError, match="at most 160 m"):
        model.encode({"s2": pixels[0]}, 400)
    with pytest.raises(UserError, match="no sensor 'S2x'"):
        model.encode({"S2x": pixels[0]}, 40)
    with pytest.raises(UserError, match="has no mean and std"):
        model.encode({"s2": rj.Image(pixels[0], sensor=sensor("terramesh_s2l2a"))}, 40)
    with pytest.raises(UserError, match="no block 3"):
        model.encode({"s2": pixels[0]}, 40, layers=(3,))
    with pytest.raises(UserError, match="must cover the same ground"):
        model.encode({"s2": pixels[0], "s1": np.zeros((2, 64, 64), np.float32)}, 40)
    with pytest.raises(UserError, match="no checkpoint at"):
        rj.load(tmp_path)
    with pytest.raises(UserError, match="at most 640 m"):
        rj.cost(model, "sentinel2_l2a", 640, 1000)
