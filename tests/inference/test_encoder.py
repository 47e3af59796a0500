"""Encoding places: a list equals one by one, few programs serve all sizes, and the features can be differentiated."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax.inference import encoder as inference
from ramen_jax.inference.encoder import Encoder
from ramen_jax.inference.places import token_maps
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
    """Catches shapes that follow the dates, pixels or places of a batch, and a program per set of modalities."""
    before = inference._encode._cache_size()
    features = model.encode([place(number, both=number % 3 == 0) for number in range(200)], GSD)
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


@pytest.mark.parametrize("recipe", ["reference", "fixed"])
def test_a_place_is_what_the_model_makes_of_its_pixels(model, recipe):
    """`encode` samples on the host and packs; `traceable` hands the pixels to the model. Catches a difference."""
    ramen = dataclasses.replace(model.ramen, recipe=Recipe.named(recipe))
    encoder = dataclasses.replace(model, ramen=ramen)
    images = place(3, both=True)
    values = images["optic"].values
    valid = np.random.default_rng(0).random((len(values), *values.shape[2:])) > 0.3
    images["optic"] = rj.Image(values, images["optic"].days, valid=valid)
    function, example = encoder.traceable(encoder.place(images, GSD))
    expected = jax.jit(function)(*example)
    for name, found in encoder.encode([place(5), images, place(7, both=True)], GSD)[1].maps.items():
        np.testing.assert_allclose(found, expected[name], atol=1e-5)


def test_many_places_take_less_time_than_one_by_one(model):
    """Catches work per place that packing should share. Processor time, so that a busy machine does not matter."""
    draw = np.random.default_rng(1)
    places = [
        {"optic": rj.Image(draw.normal(50, 20, (1, 2, side, side)), [100])}
        for side in draw.integers(8, 17, 100)
    ]

    def seconds(encode: Any) -> float:
        before = time.process_time()
        encode()
        return time.process_time() - before

    def together() -> Any:
        return model.encode(places, GSD)

    def one_by_one() -> Any:
        return [model.encode(images, GSD) for images in places]

    together(), one_by_one()  # compiles
    ratios = sorted(seconds(one_by_one) / seconds(together) for _ in range(3))
    assert ratios[1] > 2


def test_maps_on_the_device_are_those_of_encode(model):
    """Catches a program per place: maps are cut out by one program per grid and length of rows."""
    places = [place(number, both=number % 3 == 0) for number in range(6)] * 2
    inference._maps.clear_cache()
    made = [model.place(images, GSD) for images in places]
    found = dict(model.device_maps(made))
    cuts = {
        (tuple(each.sample.images), each.grid, batch.rows.encoder_segment_RxE.shape)
        for batch in model.batches(made)
        for each in batch.places
    }
    assert inference._maps._cache_size() == len(cuts) < len(places)
    for number, features in enumerate(model.encode(places, GSD)):
        for name, expected in features.maps.items():
            assert isinstance(found[number][name], jax.Array)
            np.testing.assert_allclose(found[number][name][0], expected, atol=1e-5)


def test_weights_can_be_tuned_through_the_maps(model):
    """A decoder's gradient reaches every weight that the bands use. Catches maps that leave the device."""
    draw = np.random.default_rng(0)
    images = {
        "optic": rj.Image(draw.normal(50, 20, (3, 2, 8, 8)), [10, 100, 200]),
        "height": rj.Image(draw.normal(50, 20, (1, 8, 8))),
    }
    made = [model.place(images, GSD), model.place({"height": images["height"]}, GSD)]

    def energy(params: Any) -> jax.Array:
        tuned = dataclasses.replace(model, params=params)
        maps = [array for _, found in tuned.device_maps(made) for array in found.values()]
        # The mean square of normalised features would be the same whatever the weights: their cube is not.
        return sum(jnp.mean(array**3) for array in maps)

    gradient = jax.grad(energy)(model.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        # There is no radar, and the keys' bias adds the same to every score of a softmax.
        assert (np.abs(leaf).max() > 0) == ("radar" not in name and "['key']['bias']" not in name), name
    scale = sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(gradient)) ** 0.5
    step = 1e-2 / scale
    there, back = (
        energy(jax.tree.map(lambda p, g, s=sign: p + s * step * g / scale, model.params, gradient))
        for sign in (1, -1)
    )
    assert float(there - back) / (2 * step) == pytest.approx(scale, rel=0.05)


def test_a_window_with_its_origin_has_the_positions_of_the_whole(model):
    """Catches windows of a scene that all begin at 0."""
    values = np.random.default_rng(0).normal(50, 20, (1, 2, 8, 8)).astype(np.float32)

    def tokens(pixels: np.ndarray, origin: tuple[float, float]) -> np.ndarray:
        """What the transformer is given, [D, h, w], at a target GSD of one pixel."""
        made = model.place({"optic": pixels}, 10.0)._replace(origin=origin)
        (batch,) = model.batches([made])
        encoder = model.ramen.encoder(model.params, model.statistics)
        given = encoder.tokens(batch.rows, dict(batch.bands))
        return np.asarray(token_maps(given[:, batch.found[0].start :], made)["optic"][0])

    whole = tokens(values[0], (0.0, 0.0))
    window = values[0, :, 4:, 2:6]
    np.testing.assert_allclose(tokens(window, (20.0, 40.0)), whole[:, 4:, 2:6], atol=1e-6)
    assert np.abs(tokens(window, (0.0, 0.0)) - whole[:, 4:, 2:6]).max() > 0.1
