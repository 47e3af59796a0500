"""Readouts in closed form: what they find, in every family, and what they leave out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.evaluation import closed_form
from ramen_jax.evaluation.encoders import Pixels, Raw
from ramen_jax.evaluation.pangaea.decoders import COMPARISONS
from ramen_jax.evaluation.readout import RIDGE
from tests.evaluation.conftest import SMALL

RNG = np.random.default_rng(0)
DIM = 6


def levels_of(maps):
    return [maps.astype(np.float32)] * 2


def test_ridge_is_least_squares_with_a_penalty_whatever_the_pieces():
    """(Mutants: no centring, a penalty on the bias, moments of the last piece.)"""
    x = RNG.normal(3, [1, 5, 0.1, 1, 1, 2], (200, DIM))
    y = x @ RNG.normal(size=(DIM, 2)) + 100
    whole, pieces = closed_form.Regression(), closed_form.Regression()
    whole.add(x, y)
    for part in np.array_split(np.arange(200), 3):
        pieces.add(x[part], y[part])
    np.testing.assert_allclose(whole.scores(x), pieces.scores(x), rtol=1e-6)
    z = (x - x.mean(0)) / x.std(0)
    slope = np.linalg.solve(z.T @ z / 200 + RIDGE * np.eye(DIM), z.T @ (y - y.mean(0)) / 200)
    np.testing.assert_allclose(whole.scores(x), z @ slope + y.mean(0), rtol=1e-4)


@pytest.mark.parametrize("name", closed_form.NAMES)
def test_every_family(name):
    """Truth that the maps hold is found; pixels without truth teach nothing. (Mutant: ignored ones as a class.)"""
    maps = RNG.normal(size=(12, 4, 4, DIM))
    truth = (maps[..., 0] > 0).astype(np.int32)
    per_pixel = np.repeat(np.repeat(truth, 8, 1), 8, 2)
    known = np.where(RNG.random(per_pixel.shape) < 0.3, -1, per_pixel)
    maps[..., 0] *= 20
    found = closed_form.build(name, "segmentation", 2, -1, 12 * 16)
    found.learn(levels_of(maps), known)
    logits = np.asarray(found.decode(None, levels_of(maps), (32, 32)))
    assert logits.shape == (12, 32, 32, 2)
    assert (closed_form.at_centres(logits.argmax(-1), (4, 4)) == truth).mean() > 0.9

    heights = per_pixel * np.float32(30)
    found = closed_form.build(name, "regression", 1, -1, 12 * 16)
    found.learn(levels_of(maps), heights)
    answer = closed_form.at_centres(np.asarray(found.decode(None, levels_of(maps), (32, 32)))[..., 0], (4, 4))
    assert np.corrcoef(answer.ravel(), truth.ravel())[0, 1] > 0.6

    kinds = np.arange(12, dtype=np.int32) % 3
    places = RNG.normal(size=(12, 4, 4, DIM)) / 4 + 3 * np.eye(DIM)[kinds][:, None, None]
    found = closed_form.build(name, "classification", 3, -1, 12)
    found.learn(levels_of(places), kinds)
    assert (np.asarray(found.decode(None, levels_of(places), (1, 1))).argmax(-1) == kinds).all()

    several = np.eye(3, dtype=np.int32)[kinds]
    found = closed_form.build(name, "multi_label", 3, -1, 12)
    found.learn(levels_of(places), several)
    yes = np.asarray(found.decode(None, levels_of(places), (1, 1))) > 0
    # The benchmark's rule marks the ten best classes, here all three.
    assert (yes == (several if name == "ridge" else np.ones_like(several))).all()


def test_change_is_read_from_the_difference():
    """(Mutant: the first date alone.)"""
    pair = RNG.normal(size=(8, 2, 4, 4, DIM))
    change = (pair[:, 1, ..., 0] > pair[:, 0, ..., 0]).astype(np.int32)
    found = closed_form.build("ridge", "change_detection", 2, -1, 128, COMPARISONS["difference"])
    found.learn(levels_of(pair), np.repeat(np.repeat(change, 8, 1), 8, 2))
    logits = np.asarray(found.decode(None, levels_of(pair), (32, 32)))
    assert (closed_form.at_centres(logits.argmax(-1), (4, 4)) == change).mean() > 0.9


def test_a_bank_is_bounded():
    bank = closed_form.build("knn", "segmentation", 2, -1, 5 * closed_form.MOST_NEIGHBOURS).method
    assert bank.every == 5
    for _ in range(3):
        bank.add(RNG.normal(size=(7, DIM)), np.ones((7, 2)))
    assert sum(map(len, bank._bank)) == 5  # every fifth of 21, across the pieces


@pytest.mark.parametrize("name", closed_form.NAMES)
def test_water_is_read_off_the_bands(make_run, name):
    """In `evaluate`: without a step, far above chance, with both definitions and a confusion matrix."""
    run = make_run(Raw(), dataclasses.replace(SMALL, decoder=name, target_gsd=20.0))
    result = run.result()
    assert (result["steps"], result["decoder"]) == (0, name)
    assert result["scores"]["corrected"]["mIoU"] > 60
    assert np.sum(result["confusion"]) > 0
    with pytest.raises(UserError, match=f"{name} reads maps of a frozen encoder, and unet is trained"):
        make_run(Pixels(), dataclasses.replace(SMALL, decoder=name))
