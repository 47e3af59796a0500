"""Encoding places: a list equals one by one, few programs serve all sizes, and the features can be differentiated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax.inference import encoder as inference
from ramen_jax.inference.encoder import Encoder
from ramen_jax.model import architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import Recipe
from ramen_jax.sensors import Sensor

GSD = 20.0


@pytest.fixture(scope="module")
def model() -> Encoder:
    bands = {"optic": {"red": 665, "nir": 842}, "height": {"dsm": "dsm"}}
    sensors = {
        f"made/{name}": Sensor.from_dict({"name": name, "gsd": 10, "bands": listed}).with_statistics(
            [50.0] * len(listed), [20.0] * len(listed)
        )
        for name, listed in bands.items()
    }
    shape = architecture.Architecture(embed_dim=32, depth=2, num_heads=4)
    recipe = Recipe.named("fixed")
    params, statistics = Ramen(shape, recipe, with_decoder=False).init(jax.random.key(0))
    return Encoder.of(shape, recipe, sensors, {}, params, statistics)


def place(number: int, both: bool = False) -> dict[str, rj.Image]:
    """A place of 8 to 64 pixels and 1 to 30 dates, of one modality or of both."""
    draw = np.random.default_rng(number)
    side, dates = int(draw.integers(8, 65)), int(draw.integers(1, 31))
    days = np.sort(draw.integers(1, 366, dates))
    images = {"optic": rj.Image(draw.normal(50, 20, (dates, 2, side, side)), days)}
    if both:
        images["height"] = rj.Image(draw.normal(50, 20, (1, side, side)))
    return images


def test_a_list_is_its_places_one_by_one(model):
    """Catches positions, dates or maps that leak between places of a row."""
    places = [place(number, both=number % 3 == 0) for number in range(6)]
    together = model.encode(places, GSD, layers=(0,))
    for number, images in enumerate(places):
        alone = model.encode(images, GSD, layers=(0,))
        found = together[number]
        assert set(found.maps) == set(images)
        for name in images:
            np.testing.assert_allclose(found.maps[name], alone.maps[name], atol=1e-5)
            np.testing.assert_allclose(found.layers[0][name], alone.layers[0][name], atol=1e-5)
        np.testing.assert_allclose(found.cls, alone.cls, atol=1e-5)


def test_few_programs_serve_two_hundred_places(model):
    """Catches shapes that follow the number of dates, pixels or places of a batch."""
    before = inference._encode._cache_size()
    features = model.encode([place(number) for number in range(200)], GSD)
    assert len(features) == 200
    assert all(np.isfinite(each.cls).all() for each in features)
    assert inference._encode._cache_size() - before <= 6


def test_gradients_reach_every_valid_pixel_and_no_missing_one(model):
    """Catches a missing pixel whose value is read, and pixels that no token reads."""
    draw = np.random.default_rng(0)
    values = draw.normal(50, 20, (3, 2, 16, 16)).astype(np.float32)
    valid = np.ones((3, 16, 16), bool)
    valid[1, 4:8, 4:8] = False
    made = model.place({"optic": rj.Image(values, [10, 100, 200], valid=valid)}, GSD)
    function, (example, days) = model.traceable(made)

    def energy(pixels: jax.Array) -> jax.Array:
        return jnp.sum(function({"optic": pixels}, days)["optic"][0] ** 2)

    gradient = np.abs(np.asarray(jax.grad(energy)(jnp.asarray(example["optic"])))).sum(1)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] > 0).mean() > 0.95
