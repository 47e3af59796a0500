"""The encoder as the benchmark runs it on series: estimated on the task, by the batch, and kept with the decoder."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation.drifting import Drifting
from ramen_jax.evaluation.encoders import digest
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import open_task
from tests.evaluation.conftest import SMALL
from tests.evaluation.test_runs import Killed, numbers

SIDE = 32


@pytest.fixture(scope="session")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pastis")
    WRITERS["pastis"](folder, places=6, pixels=SIDE, dates=12)
    return folder


@pytest.fixture
def series_run(make_run, patches):
    def make(protocol, folder="run", **changes):
        task = open_task("pastis", patches, protocol, pixels=SIDE)
        return make_run(settings=dataclasses.replace(SMALL, **changes), task=task, folder=folder)

    return make


def moved(before, after):
    return [
        bool((np.asarray(a) != np.asarray(b)).all())
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]


def test_only_series_of_the_published_protocol_drift(make_run, series_run, tiny):
    assert isinstance(series_run(PUBLISHED).features.encoder, Drifting)
    assert series_run(CORRECTED).features.encoder is tiny
    # A single date, or dates that the decoder merges, pass no BatchNorm.
    assert series_run(PUBLISHED, decoder="seg_linear_mt").features.encoder is tiny
    floods = open_task("sen1floods11", make_run().task.source, PUBLISHED, pixels=64)
    assert make_run(task=floods).features.encoder is tiny
    # Nor does a readout train anything.
    assert series_run(PUBLISHED, decoder="ridge").features.encoder is tiny


def test_a_batch_is_encoded_by_its_own_statistics_and_moves_the_running_ones(series_run, tiny):
    """(Mutants: the checkpoint's statistics at the start; statistics of a part of the batch; dropout without a key.)"""
    before = digest(tiny.encoder.statistics)
    run = series_run(PUBLISHED)
    features, first = run.features, run.features.initial()
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        assert (leaf == (1 if path[-1].key == "var" else 0)).all()
    batch = next(run.epoch(0))
    levels, after = features.in_training(batch, False, first, None)
    assert all(moved(first, after))
    again, _ = features.in_training(batch, False, after, None)
    np.testing.assert_array_equal(levels[0], again[0])  # the running ones are not read while training
    swapped, _ = features.in_training(batch[::-1], False, first, None)
    np.testing.assert_allclose(levels[-1], swapped[-1][::-1], atol=1e-3)
    alone, _ = features.in_training(batch[:1], False, first, None)
    assert np.abs(levels[-1][0] - alone[-1][0]).max() > 1e-3
    dropped, _ = features.in_training(batch, False, first, jax.random.key(0))
    assert np.abs(levels[-1] - dropped[-1]).max() > 1e-3
    by_first, by_after = (features.of(batch, True, statistics) for statistics in (first, after))
    assert np.abs(by_first[-1] - by_after[-1]).max() > 1e-3
    assert digest(tiny.encoder.statistics) == before


def test_killed_the_statistics_go_on(series_run):
    """Dropout on. (Mutant: a state without the encoder's statistics.)"""
    whole = numbers(series_run(PUBLISHED, folder="whole").result())
    calls = 0

    def progress(info):
        nonlocal calls
        calls += 1
        if calls == 4:  # in the second epoch
            raise Killed

    with pytest.raises(Killed):
        series_run(PUBLISHED, folder="killed").result(progress)
    assert numbers(series_run(PUBLISHED, folder="killed").result()) == whole
