"""What is read from maps in closed form: what is linear is found, what is nothing is called nothing."""

from __future__ import annotations

import numpy as np
import pytest

from ramen_jax.evaluation import readout


def test_the_linear_readout_finds_what_is_linear():
    """And says what chance is where nothing is. (Mutants: no standardisation, labels of the wrong half.)"""
    rng = np.random.default_rng(0)
    maps = [rng.normal(100, 1, (6, 6, 8)) for _ in range(12)]
    linear = [(one[..., 0] > 100).astype(np.int32) + (one[..., 3] > 101) for one in maps]
    noise = [rng.integers(0, 3, (6, 6)) for _ in maps]
    for labels, least, most in ((linear, 75, 100), (noise, 15, 50)):
        unknown = [np.where(rng.random(one.shape) < 0.1, -1, one) for one in labels]
        scores = readout.linear_readout(maps[:8], unknown[:8], maps[8:], unknown[8:], 3)
        assert least < scores["accuracy"] <= most


def test_neighbours_name_the_kind_of_place():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 16))
    kinds = [place % 3 for place in range(24)]
    maps = [centres[kind] + 0.1 * rng.normal(size=(4, 4, 16)) for kind in kinds]
    assert readout.knn(maps[:12], kinds[:12], maps[12:], kinds[12:]) == 100


def test_the_place_in_the_grid_tells_what_depends_on_it_and_nothing_else():
    """(Mutants: the mean of the places asked, which chance explains; a share that falls below 0.)"""
    rng = np.random.default_rng(2)
    content = rng.normal(size=(60, 6, 6, 4))
    stripes = 2 * np.sin(np.arange(6))[None, None, :, None]
    for strength, expected in ((0.0, 0.0), (1.0, None), (100.0, 1.0)):
        maps = list(content + strength * stripes)
        truth = strength**2 * np.var(stripes) / (strength**2 * np.var(stripes) + 1)
        found = readout.position_share(maps[:40], maps[40:])
        assert found == pytest.approx(truth if expected is None else expected, abs=0.03)
        assert found >= 0


def test_a_map_is_asked_again_without_being_fitted_again():
    """(Mutant: features centred by those that are asked.)"""
    rng = np.random.default_rng(3)
    maps = [rng.normal(size=(5, 5, 3)) for _ in range(20)]
    labels = [(one[..., 0] > 0).astype(np.int32) for one in maps]
    linear = readout.Linear(maps[:15], labels[:15], 2)
    assert linear.scores(maps[15:], labels[15:]) == readout.linear_readout(
        maps[:15], labels[:15], maps[15:], labels[15:], 2
    )
    moved = [one + 3 for one in maps[15:]]
    assert linear.scores(moved, labels[15:])["accuracy"] < 80


def test_the_penalty_is_chosen_on_places_that_a_fit_leaves_out():
    """Classes in a small difference ask for a small one, noise for a large one. (Mutant: chosen on what was fitted.)"""
    rng = np.random.default_rng(4)
    shared = [rng.normal(size=(6, 6, 1)) for _ in range(24)]
    small = [0.01 * rng.normal(size=(6, 6, 1)) for _ in shared]
    told = [np.concatenate([a, a + b], -1) for a, b in zip(shared, small, strict=True)]
    labels = [(one[..., 0] > 0).astype(np.int32) for one in small]
    linear = readout.Linear(told[:16], labels[:16], 2, readout.PENALTIES)
    assert linear.penalty <= 1e-4
    assert linear.scores(told[16:], labels[16:])["accuracy"] > 90
    assert readout.Linear(told[:16], labels[:16], 2).scores(told[16:], labels[16:])["accuracy"] < 80
    # As many features as tokens are left to a fit: without a penalty their noise is fitted.
    noisy = [rng.normal(size=(4, 4, 160)) for _ in range(15)]
    faint = [(one[..., :4].sum(-1) + 0.5 * rng.normal(size=(4, 4)) > 0).astype(np.int32) for one in noisy]
    assert readout.Linear(noisy, faint, 2, (1e-6, 1.0)).penalty == 1.0
