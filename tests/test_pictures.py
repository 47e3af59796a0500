"""Pictures show what they say: colours from the right bands, shading from the right side, one PCA basis for all."""

from __future__ import annotations

import argparse
import dataclasses
import json

import jax
import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax.earth import places
from ramen_jax.sensors import registry, sensor
from ramen_jax.training import experiment, pictures
from ramen_jax.visual import display, figures

RNG = np.random.default_rng(0)


def test_every_sensor_of_the_registry_can_be_shown():
    for entry in registry().values():
        image = RNG.uniform(1, 2, (len(entry.bands), 6, 7)).astype(np.float32)
        found = display.looks(entry, image)
        assert found, f"{entry.name} has no picture"
        for look in found:
            picture = look.picture(image)
            assert picture.shape == (6, 7, 3), look.title
            assert picture.min() >= 0
            assert picture.max() <= 1
            assert np.isfinite(picture).all()


def test_true_and_false_colour_take_the_right_bands():
    names = [band.name for band in sensor("sentinel2_l2a").bands]
    true, false = display.looks(sensor("sentinel2_l2a"), RNG.random((len(names), 5, 5)))
    assert [names[i] for i in true.bands] == ["B4", "B3", "B2"]
    assert [names[i] for i in false.bands] == ["B8", "B4", "B3"]
    assert true.unit == ""


def test_linear_backscatter_is_shown_in_decibel():
    (look,) = display.looks(sensor("flairhub_s1_des"), np.full((2, 4, 4), 0.1, np.float32))
    assert look.unit == "dB"
    np.testing.assert_allclose(look.values(np.full((2, 4, 4), 0.1, np.float32)), -10, atol=1e-5)


def test_limits_ignore_invalid_pixels():
    image = np.zeros((1, 10, 10), np.float32)
    image[0, :5] = 9999
    valid = np.ones((10, 10), bool)
    valid[:5] = False
    (look,) = display.looks(sensor("terramesh_dem"), image, valid)
    assert look.limits == ((-0.5, 0.5),)


def test_an_image_without_contrast_is_shown_without_contrast():
    known = sensor("flairhub_spot").with_statistics((0.0,) * 4, (100.0,) * 4)
    (look,) = display.looks(known, np.full((4, 5, 5), 20.0))
    assert look.limits == ((-5.0, 45.0),) * 3


def test_the_light_comes_from_the_north_west():
    rows, columns = np.mgrid[:20, :20]
    hill = -((rows - 9.5) ** 2 + (columns - 9.5) ** 2)
    light = display.hillshade(hill, 1.0)
    assert light[4, 4] > light[15, 15]
    np.testing.assert_allclose(light[4, 15], light[15, 4])
    assert np.ptp(display.hillshade(np.full((3, 3), 7.0), 1.0)) == 0


def test_days():
    assert display.day_of_year(187) == "day 187 (6 Jul)"
    assert display.day_of_year(0) == ""


def test_principal_components_have_one_basis_for_all_maps():
    basis = np.linalg.qr(RNG.normal(size=(16, 16)))[0][:3]
    coarse = RNG.normal(size=(4, 4, 3)) * (9, 3, 1) @ basis
    fine = coarse.repeat(4, axis=0).repeat(4, axis=1)
    (small, large), share = figures.principal_colours([coarse, fine])
    np.testing.assert_allclose(small.repeat(4, axis=0).repeat(4, axis=1), large, atol=1e-9)
    np.testing.assert_allclose(share, 1)


class Rendered(list):
    """Two synthetic places with their statistics, in the shape of a prepared corpus."""

    split = "train"

    def __init__(self):
        spec = places.corpus_spec("tiny")
        spec = places.corpus_spec("tiny", modalities=("spot", "dem", "s1_des"))
        super().__init__(places.render_place(0, place, spec) for place in range(2))
        modalities = []
        for modality in spec.modalities:
            values = np.concatenate([sample.images[modality.name].values for sample in self]).astype(
                np.float64
            )
            values = values * modality.sensor.scale + modality.sensor.offset
            known = modality.sensor.with_statistics(values.mean((0, 2, 3)), values.std((0, 2, 3)) + 1e-6)
            modalities.append(dataclasses.replace(modality, sensor=known))
        self.spec = dataclasses.replace(spec, modalities=tuple(modalities))

    def statistics(self, sample, modality):
        known = self.spec.modality(modality).sensor
        return np.array(known.mean), np.array(known.std)


@pytest.fixture(scope="module")
def tiny():
    """A function of the recipe: a randomly initialised model, and two rendered places of the tiny geometry."""
    corpus = Rendered()

    def build(recipe):
        config = configuration.default()
        configuration.apply_size(config, "tiny")
        config.model.depth = config.model.decoder_depth = 1
        config.recipe = recipe
        config = configuration.finish(config)
        model = experiment.ramen(config)
        random = np.random.default_rng(0)
        arrays = jax.tree.map(
            lambda leaf: random.normal(0, 0.05, leaf.shape).astype(np.float32), model.shapes
        )
        return pictures.Trained(model, *arrays, config, 0, {}), corpus

    return build


def test_target_gsds_are_those_trained_on_and_stay_within_the_budget():
    spec = places.corpus_spec("tiny")
    extent = spec.first.height * spec.first.sensor.gsd
    trained_on = tuple(extent / side for side in (2, 4, 8, 10, 16, 60))
    assert pictures.choose_gsds(spec, trained_on) == [extent / 4, extent / 8, extent / 16]
    few = pictures.choose_gsds(spec, (extent / 1000,))
    assert few[0] == 2 * few[1] == 4 * few[2]


def test_reconstruction_of_the_fixed_recipe_is_in_physical_units(tiny):
    trained, corpus = tiny("fixed")
    extent = corpus.spec.first.height * corpus.spec.first.sensor.gsd
    view = pictures.whole_view(corpus, corpus[0], extent / 4, seed=0)
    found = pictures.reconstructions(trained, corpus, view)
    assert list(found) == list(view.modalities)
    for name, result in found.items():
        assert 0 < result.hidden.mean() < 1
        entry = corpus.spec.modality(name).sensor
        mean, std = (np.array(values)[:, None, None] for values in (entry.mean, entry.std))
        np.testing.assert_allclose(result.target * std + mean, result.original, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(
            result.prediction * std + mean, result.reconstruction, rtol=1e-3, atol=1e-2
        )


def test_pictures_of_a_corpus_are_written(tiny, tmp_path):
    trained, corpus = tiny("reference")
    extent = corpus.spec.first.height * corpus.spec.first.sensor.gsd
    entry = configuration.corpus("tiny", target_gsds=(extent / 4, extent / 6, extent / 8))
    given = argparse.Namespace(sample=1, target_gsd=None, seed=0)
    pictures.draw_corpus(trained, corpus, entry, given, tmp_path)
    lines = [
        {"step": i, "corpus": "tiny", "loss": 2.0, "loss/a": 1.0, "loss/b": float(i % 2)} for i in range(9)
    ]
    figures.loss(json.loads(json.dumps(lines)), {"tiny": {"a": 1.0, "b": 0.5}}, "loss", tmp_path / "loss.png")
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["features_tiny.png", "loss.png", "reconstruction_tiny.png"]
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
