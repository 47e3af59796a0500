"""Places in batches: every one once, whole and beside others of its kind, in rows that are full."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax.inference.places import TOKENS, Batch, Place, batches, rounded
from ramen_jax.recipe import FIXED
from ramen_jax.samples import Image, Sample
from ramen_jax.sensors import Sensor

GSD = 20.0
BANDS = {"optic": {"red": 665, "nir": 842}, "height": {"dsm": "dsm"}}
SENSORS = {
    name: Sensor.from_dict({"name": name, "gsd": 10, "bands": bands}).with_statistics(
        [50.0] * len(bands), [20.0] * len(bands)
    )
    for name, bands in BANDS.items()
}


def place(
    height: int, width: int, dates: int = 1, names: tuple[str, ...] = ("optic",), **changes: Sensor
) -> Place:
    """Images of `height` x `width` pixels of 10 m; only the optical one is a series."""
    images = {}
    for name in names:
        frames = dates if name == "optic" else 1
        bands = len(BANDS[name])
        values = np.full((frames, bands, height, width), 50.0, np.float32)
        images[name] = Image(values, np.full(frames, 100, np.int16), np.ones(bands, bool))
    return Place(Sample("place", images), {**SENSORS, **changes}, GSD)


def squares(sides: list[int], dates: int = 1) -> list[Place]:
    return [place(side, side, dates) for side in sides]


def packed(places: list[Place], tokens: int = TOKENS) -> list[Batch]:
    return list(batches(places, FIXED, tokens))


def shapes(found: list[Batch]) -> set[tuple]:
    """What a compilation depends on."""
    return {(batch.bands, *(leaf.shape for leaf in jax.tree.leaves(batch.rows))) for batch in found}


def fill(places: list[Place], found: list[Batch]) -> float:
    """Share of the tokens that are somebody's."""
    given = sum(batch.rows.encoder_segment_RxE.size for batch in found)
    return sum(each.tokens for each in places) / given


KINDS = st.tuples(
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(1, 30),
    st.sampled_from([("optic",), ("height",), ("optic", "height"), ("height", "optic")]),
)


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(KINDS, min_size=1, max_size=40), tokens=st.sampled_from([64, 1000, TOKENS]))
def test_every_place_is_packed_once_and_whole(kinds: list, tokens: int) -> None:
    """Catches places lost with the last batch, rows that overflow, and tokens found in another's place."""
    places = [place(*kind) for kind in kinds]
    found = []
    for batch in packed(places, tokens):
        segment_RxE = batch.rows.encoder_segment_RxE
        taken = np.zeros(segment_RxE.shape, bool)
        for where, each in zip(batch.found, batch.places, strict=True):
            assert each is places[where.place]
            own = np.s_[where.row, where.start : where.start + each.tokens]
            assert not taken[own].any()
            taken[own] = True
            assert len(segment_RxE[own]) == each.tokens
            assert (segment_RxE[own] == segment_RxE[where.row, where.start]).all()
            # The class token comes first, and has no feature of its own.
            assert (batch.rows.encoder_feature_RxE[own] >= 0).tolist() == [False] + [True] * (each.tokens - 1)
            assert set(each.sample.images) <= {name for name, _ in batch.bands}
            found.append(where.place)
        np.testing.assert_array_equal(segment_RxE > 0, taken)
    assert sorted(found) == list(range(len(places)))


def test_rows_are_full() -> None:
    """Catches rows as short as the longest place, and a class token that makes a row of the next length."""
    sides = np.random.default_rng(0).integers(8, 65, 200).tolist()
    mixed = squares(sides)
    assert fill(mixed, packed(mixed)) > 0.85
    chips = squares([64] * 30)
    assert fill(chips, packed(chips)) == 1.0
    small = squares([16] * 200)
    assert fill(small, packed(small)) > 0.75


def test_a_large_place_lengthens_no_other_ones_row() -> None:
    """Catches one capacity for all: 199 rows of the length of the largest place."""
    places = squares([300, *[8] * 199])
    found = packed(places)
    assert fill(places, found) > 0.7
    assert len(shapes(found)) == 2


def test_programs_follow_bands_and_classes_of_dates_alone() -> None:
    """Catches a program per number of dates, per set of modalities, per size or per statistic."""
    draw = np.random.default_rng(0)
    sets = [("optic",), ("height", "optic"), ("optic", "height")]
    places = [
        place(*draw.integers(8, 65, 2).tolist(), dates, sets[dates % 3])
        for dates in (int(n) for n in draw.integers(1, 31, 200))
    ]
    assert len(shapes(packed(places))) <= 4
    moved = SENSORS["optic"].with_statistics([51.0, 52.0], [21.0, 22.0])
    more = [place(16, 16), place(16, 16, optic=moved), place(16, 16, names=("height",))]
    (batch,) = packed([*more[:2], place(16, 16, names=("height", "optic")), more[2]])
    values = batch.rows.images["optic"].values_RxSxTxCxHxW
    assert len(np.unique(values)) == 3, "each place is normalised by its own statistics"
    coarse = dataclasses.replace(SENSORS["optic"], gsd=20.0)
    assert len(packed([more[0], place(16, 16, optic=coarse)])) == 2


@pytest.mark.parametrize("origin", [(0.0, 0.0), (400.0, -1200.0)])
def test_positions_are_counted_from_the_origin(origin: tuple[float, float]) -> None:
    (batch,) = packed([place(8, 12)._replace(origin=origin)])
    coords = batch.rows.encoder_coords_RxEx2[0, 1:25].reshape(4, 6, 2)
    x, y = np.arange(6) * GSD + origin[0], np.arange(4) * GSD + origin[1]
    np.testing.assert_array_equal(coords[..., 0], np.broadcast_to(x, (4, 6)))
    np.testing.assert_array_equal(coords[..., 1], np.broadcast_to(y[:, None], (4, 6)))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_rounded_has_few_values_and_is_never_far(steps: int) -> None:
    values = [rounded(number, steps) for number in range(1, 4097)]
    assert values == sorted(values)
    assert all(number <= value <= number * (1 + 1 / steps) for number, value in enumerate(values, 1))
    assert len(set(values)) <= 1 + 12 * steps
