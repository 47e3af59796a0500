"""Packing: every token in its place, once; padding is nothing; the reference's mask; the time masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax import sampling
from ramen_jax.recipe import FIXED, REFERENCE, Recipe
from ramen_jax.rows.batch import FRAME_NONE, FRAME_REAL, FRAME_ZERO, Rows
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import Capacity, PackedView, view_grid, visible_count
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from tests.rows.small_corpora import COASTS, FIELDS, FIELDS_GSDS, optical, radar, random_sample

POINT = CorpusSpec(  # one pixel, one band, one date
    "point",
    (
        ModalitySpec("pan", optical("pan", 1, 10.0), 1, 1, dtype="uint8"),
        ModalitySpec("radar", radar("radar", 10.0), 1, 1, True, 3, "float32"),
    ),
)

VISIBLE = REFERENCE.but(temporal="visible")
NO_PADDING = REFERENCE.but(time_mask="fixed")


def make_view(
    spec: CorpusSpec, number: int, gsd: float, modalities: tuple[str, ...], **changes
) -> PackedView:
    rows, cols = view_grid(spec, gsd)
    noise = np.random.default_rng(1000 + number).random(rows * cols * len(modalities))
    return PackedView(random_sample(spec, number), gsd, modalities, noise, **changes)


@st.composite
def packed_rows(draw):
    """Random rows of one of three corpora."""
    spec, gsds = draw(st.sampled_from([(FIELDS, FIELDS_GSDS), (COASTS, (3.0, 4.0, 7.5)), (POINT, (10.0,))]))
    names = [m.name for m in spec.modalities]
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = []
        for _ in range(draw(st.integers(0, 4))):
            kept = tuple(draw(st.permutations(names))[: draw(st.integers(1, len(names)))])
            row.append(make_view(spec, draw(st.integers(0, 30)), draw(st.sampled_from(gsds)), kept))
        rows.append(row)
    return spec, rows


def loosened(capacity: Capacity, by: int) -> Capacity:
    changes = {
        key: tuple(n + by for n in value) if isinstance(value, tuple) else value + by
        for key, value in capacity.__dict__.items()
        if key not in ("rows", "pixels")
    }
    return dataclasses.replace(capacity, **changes)


def check(
    spec: CorpusSpec, rows: list[list[PackedView]], batch: Rows, temporal: str, mask_ratio: float
) -> None:
    """Rebuilds every view from the batch alone and compares it with what went in."""
    names = sorted(m.name for m in spec.modalities)
    assert list(batch.images) == names
    lengths = [batch.images[name].encoder_slot_RxN.shape[1] for name in names]
    starts = np.cumsum([0, *lengths])
    used = dict.fromkeys(names, 0)
    for r, views in enumerate(rows):
        e = d = 0
        for segment, view in enumerate(views, start=1):
            grid = view_grid(spec, view.target_gsd)
            cells = grid[0] * grid[1]
            total = cells * len(view.modalities)
            visible = np.argsort(view.noise, kind="stable")[: visible_count(total, mask_ratio)]
            hidden = np.ones(total, bool)
            hidden[visible] = False
            e_end, d_end = e + 1 + len(visible), d + 1 + total
            assert (batch.encoder_segment_RxE[r, e:e_end] == segment).all()
            assert (batch.decoder_segment_RxL[r, d:d_end] == segment).all()
            assert batch.encoder_feature_RxE[r, e] == -1
            assert batch.decoder_modality_RxL[r, d] == -1
            assert batch.decoder_encoder_RxL[r, d] == e  # CLS to CLS
            places = batch.decoder_encoder_RxL[r, d + 1 : d_end]
            assert ((places == -1) == hidden).all()
            assert (np.sort(places[~hidden]) == np.arange(e + 1, e_end)).all()  # each visible token once
            y, x = np.divmod(np.tile(np.arange(cells), len(view.modalities)), grid[1])
            coords = np.stack([x, y], axis=1) * view.target_gsd
            np.testing.assert_allclose(batch.decoder_coords_RxLx2[r, d + 1 : d_end], coords, rtol=1e-6)
            np.testing.assert_array_equal(
                batch.encoder_coords_RxEx2[r, places[~hidden]],
                batch.decoder_coords_RxLx2[r, d + 1 : d_end][~hidden],
            )
            for k, name in enumerate(view.modalities):
                images = batch.images[name]
                (slot,) = np.flatnonzero(images.view_RxS[r] == segment)
                here = slice(d + 1 + k * cells, d + 1 + (k + 1) * cells)
                assert (batch.decoder_modality_RxL[r, here] == names.index(name)).all()
                side = images.mask_RxSxGxG.shape[-1]
                cell_numbers = (np.arange(grid[0])[:, None] * side + np.arange(grid[1])).ravel()
                mine = hidden[k * cells : (k + 1) * cells]
                np.testing.assert_array_equal(images.mask_RxSxGxG[r, slot].ravel()[cell_numbers], mine)
                assert images.mask_RxSxGxG[r, slot].sum() == mine.sum()
                listed = np.flatnonzero(images.decoder_slot_RxM[r] == slot)
                order = np.argsort(images.decoder_place_RxM[r, listed])
                np.testing.assert_array_equal(
                    images.decoder_place_RxM[r, listed][order], np.arange(here.start, here.stop)
                )
                np.testing.assert_array_equal(images.decoder_cell_RxM[r, listed][order], cell_numbers)
                seen = np.flatnonzero(images.encoder_slot_RxN[r] == slot)
                assert len(seen) == (cells if temporal == "all" else (~mine).sum())
                # from a visible decoder token, through the encoder row, to the list entry of the same cell
                feature = batch.encoder_feature_RxE[r, places[k * cells : (k + 1) * cells][~mine]]
                entry = feature - starts[names.index(name)]
                assert ((entry >= 0) & (entry < lengths[names.index(name)])).all()
                assert (images.encoder_slot_RxN[r, entry] == slot).all()
                np.testing.assert_array_equal(images.encoder_cell_RxN[r, entry], cell_numbers[~mine])
                check_image(spec.modality(name), view, images, (r, slot), grid)
                used[name] += 1
            e, d = e_end, d_end
        assert (batch.encoder_segment_RxE[r, e:] == 0).all()
        assert (batch.decoder_segment_RxL[r, d:] == 0).all()
        assert (batch.encoder_feature_RxE[r, e:] == -1).all()
        assert (batch.decoder_encoder_RxL[r, d:] == -1).all()
    for name, images in batch.images.items():
        assert (images.view_RxS > 0).sum() == used[name]
        empty = images.view_RxS == 0
        assert not images.frames_RxSxT[empty].any()
        assert not images.present_RxSxC[empty].any()
        assert not images.mask_RxSxGxG[empty].any()


def check_image(
    spec: ModalitySpec, view: PackedView, images, at: tuple[int, int], grid: tuple[int, int]
) -> None:
    image = view.sample.images[spec.name]
    count = len(image.values)
    values = images.values_RxSxTxCxHxW[at]
    assert values.dtype == spec.dtype
    np.testing.assert_array_equal(values[:count], image.values)
    np.testing.assert_array_equal(images.dates_RxSxT[at][:count], image.dates)
    assert (images.frames_RxSxT[at][:count] == FRAME_REAL).all()
    assert (images.frames_RxSxT[at][count:] != FRAME_REAL).all()
    np.testing.assert_array_equal(images.present_RxSxC[at], image.present)
    assert (images.valid_RxSxTxHxW is not None) == spec.has_valid
    gsd, target = spec.sensor.gsd, view.target_gsd
    down = sampling.down_matrix(spec.height, gsd, target, grid[0], "metric")
    np.testing.assert_array_equal(images.down_rows_RxSxGxH[at][: grid[0]], down)
    assert not images.down_rows_RxSxGxH[at][grid[0] :].any()
    up = sampling.up_matrix(spec.width, gsd, target, grid[1], "metric")
    np.testing.assert_array_equal(images.up_cols_RxSxWxG[at][:, : grid[1]], up)
    np.testing.assert_allclose(images.scale_RxS[at], gsd / target, rtol=1e-6)
    assert (images.mask_cols_RxSxW[at] < grid[1]).all()


@settings(max_examples=60, deadline=None)
@given(
    packed_rows(),
    st.sampled_from(["all", "visible"]),
    st.sampled_from([0.75, 0.5, 0.0, 1.0]),
    st.sampled_from([0, 3]),
)
def test_every_token_is_placed_exactly_once(case, temporal, mask_ratio, spare) -> None:
    spec, rows = case
    recipe = FIXED.but(temporal=temporal)
    capacity = loosened(exact_capacity(spec, rows, recipe, mask_ratio), spare)
    batch = pack(spec, rows, capacity, recipe, mask_ratio)
    check(spec, rows, batch, temporal, mask_ratio)


def test_exact_capacity_has_no_padding_for_equal_views() -> None:
    rows = [[make_view(FIELDS, n, 4.0, ("s2", "aerial"))] for n in range(3)]
    batch = pack(FIELDS, rows, exact_capacity(FIELDS, rows, NO_PADDING), NO_PADDING)
    assert (batch.encoder_segment_RxE == 1).all()
    assert (batch.decoder_segment_RxL == 1).all()
    assert (batch.images["s2"].encoder_slot_RxN == 0).all()


def test_the_mask_is_the_reference_rule() -> None:
    view = make_view(FIELDS, 3, 3.0, ("s1", "aerial", "dem"))
    noise = view.noise
    batch = pack(FIELDS, [[view]], exact_capacity(FIELDS, [[view]], REFERENCE), REFERENCE)
    keep = int(len(noise) * (1 - 0.75))
    mask = np.ones(len(noise))
    mask[:keep] = 0
    mask = mask[np.argsort(np.argsort(noise))]  # RAMEN_MAE.py: gather by ids_restore
    np.testing.assert_array_equal(batch.decoder_encoder_RxL[0, 1:] == -1, mask == 1)


def series(counts: list[int], recipe: Recipe = REFERENCE, **options) -> np.ndarray:
    views = [make_view(FIELDS, n, 8.0, ("s2",)) for n in range(len(counts))]
    for n, (view, count) in enumerate(zip(views, counts)):
        view.sample = random_sample(FIELDS, n, frames={"s2": count})
    rows = [views[:2], views[2:]]
    capacity = loosened(exact_capacity(FIELDS, rows, recipe), 1)
    return pack(FIELDS, rows, capacity, recipe, **options).images["s2"].frames_RxSxT


def test_short_series_get_zero_frames_up_to_the_longest_of_the_batch_in_reference_mode() -> None:
    frames = series([1, 3, 2])
    real, zero, none = FRAME_REAL, FRAME_ZERO, FRAME_NONE
    np.testing.assert_array_equal(frames[0, 0], [real, zero, zero, none])
    np.testing.assert_array_equal(frames[0, 1], [real, real, real, none])
    np.testing.assert_array_equal(frames[1, 0], [real, real, zero, none])
    assert not frames[1, 1].any()  # an empty slot stays empty


def test_short_series_of_a_row_and_fixed_masks() -> None:
    np.testing.assert_array_equal(
        (series([1, 3, 2], short_series="row") == FRAME_ZERO).sum(axis=2)[:, 0], [2, 0]
    )
    assert not (series([1, 3, 2], recipe=NO_PADDING) == FRAME_ZERO).any()


def test_zero_frames_count_as_valid_pixels_of_date_zero() -> None:
    views = [make_view(FIELDS, n, 8.0, ("s2",)) for n in range(2)]
    for n, view in enumerate(views):
        view.sample = random_sample(FIELDS, n, frames={"s2": 1 + 3 * n})
    images = pack(FIELDS, [views], exact_capacity(FIELDS, [views], REFERENCE), REFERENCE).images["s2"]
    assert (images.frames_RxSxT[0, 0, 1:] == FRAME_ZERO).all()
    assert images.valid_RxSxTxHxW[0, 0, 1:].all()
    assert not images.values_RxSxTxCxHxW[0, 0, 1:].any()
    assert not images.dates_RxSxT[0, 0, 1:].any()


def test_kept_dates_are_selected() -> None:
    sample = random_sample(FIELDS, 5, frames={"s2": 5})
    view = make_view(FIELDS, 5, 4.0, ("s2",), dates={"s2": np.array([1, 4])})
    view.sample = sample
    images = pack(FIELDS, [[view]], exact_capacity(FIELDS, [[view]], REFERENCE), REFERENCE).images["s2"]
    assert images.values_RxSxTxCxHxW.shape[2] == 2
    np.testing.assert_array_equal(images.values_RxSxTxCxHxW[0, 0], sample.images["s2"].values[[1, 4]])
    np.testing.assert_array_equal(images.dates_RxSxT[0, 0], sample.images["s2"].dates[[1, 4]])


def test_statistics_are_in_stored_units_and_by_sample() -> None:
    sensor = dataclasses.replace(optical("s2", 2, 4.0), scale=0.1, offset=-3.0)
    spec = CorpusSpec("one", (ModalitySpec("s2", sensor, 4, 4, dtype="uint16"),))
    view = make_view(spec, 0, 4.0, ("s2",))
    values = view.sample.images["s2"].values
    for statistics in ({}, {"s2": ((7.0, 8.0), (2.0, 4.0))}):
        view.statistics = statistics
        images = pack(spec, [[view]], exact_capacity(spec, [[view]], REFERENCE), REFERENCE).images["s2"]
        stored = images.mean_RxSxC[0, 0][:, None, None], images.std_RxSxC[0, 0][:, None, None]
        mean, std = statistics.get("s2", (sensor.mean, sensor.std))
        physical = values * 0.1 - 3.0
        expected = (physical - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
        np.testing.assert_allclose((values - stored[0]) / stored[1], expected, rtol=1e-4, atol=1e-5)


def test_a_modality_that_the_sample_lacks_is_one_absent_frame() -> None:
    view = make_view(FIELDS, 2, 4.0, ("aerial", "s2"))
    del view.sample.images["s2"]
    images = pack(FIELDS, [[view]], exact_capacity(FIELDS, [[view]], REFERENCE), REFERENCE).images["s2"]
    assert images.view_RxS[0, 0] == 1
    assert not images.present_RxSxC.any()
    assert (images.frames_RxSxT == FRAME_REAL).all()


def test_a_full_list_sends_its_visible_tokens_elsewhere() -> None:
    view = make_view(FIELDS, 1, 2.0, ("aerial", "dem"))
    rows = [[view]]
    capacity = exact_capacity(FIELDS, rows, VISIBLE)
    total = sum(capacity.encoder_tokens[i] for i in (0, 1))
    few = capacity.encoder_tokens[0] - 3
    tight = dataclasses.replace(capacity, encoder_tokens=(few, total, 1, 1))
    counters: dict[str, int] = {}
    batch = pack(FIELDS, rows, tight, VISIBLE, counters=counters)
    assert counters == {"moved_tokens": 3}
    assert (batch.encoder_segment_RxE == 1).all()  # as many visible tokens as before
    assert (batch.images["aerial"].encoder_slot_RxN[0] == 0).all()
    hidden = batch.decoder_encoder_RxL[0, 1:] == -1
    best = np.argsort(view.noise[64:], kind="stable")[: total - few]
    np.testing.assert_array_equal(np.sort(best), np.flatnonzero(~hidden[64:]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"decoder_length": 3},
            "decoder tokens needed with sample 'fields-1' at target GSD 4 m, the capacity is 3",
        ),
        ({"encoder_length": 3}, "encoder tokens needed"),
        ({"views": 0}, "holds at most 0 views"),
        ({"slots": (0, 1, 1, 1)}, "has 0 slots for aerial"),
        ({"decoder_tokens": (1, 16, 16, 16)}, "decoder tokens of aerial needed"),
        ({"dates": (1, 1, 1, 0)}, "dates kept, 1 to 0 fit"),
        ({"rows": 2}, "1 rows given, the capacity says 2"),
    ],
)
def test_what_does_not_fit_says_so(change, sentence) -> None:
    rows = [[make_view(FIELDS, 1, 4.0, ("aerial", "s2"))]]
    capacity = dataclasses.replace(exact_capacity(FIELDS, rows, REFERENCE), **change)
    with pytest.raises(ValueError, match=sentence):
        pack(FIELDS, rows, capacity, REFERENCE)


def test_wrong_images_are_named() -> None:
    view = make_view(FIELDS, 1, 4.0, ("aerial",))
    capacity = exact_capacity(FIELDS, [[view]], REFERENCE)
    bands = np.ones(3, bool)
    dates = np.zeros(1, np.int16)
    for values, sentence in [
        (np.zeros((1, 3, 16, 16), np.uint16), "found uint16 values"),
        (np.zeros((1, 3, 15, 16), np.uint8), r"expected uint8 \[dates, 3, 16, 16\]"),
    ]:
        view.sample = Sample("odd", {"aerial": Image(values, dates, bands)})
        with pytest.raises(ValueError, match=sentence):
            pack(FIELDS, [[view]], capacity, REFERENCE)


def test_unknown_choices_and_modalities_are_refused() -> None:
    view = make_view(FIELDS, 1, 4.0, ("aerial",))
    capacity = exact_capacity(FIELDS, [[view]], REFERENCE)
    with pytest.raises(ValueError, match="short_series: unknown value 'rows'; choose one of batch, row"):
        pack(FIELDS, [[view]], capacity, REFERENCE, short_series="rows")
    view.modalities = ("aerial", "aerial")
    with pytest.raises(ValueError, match="each at most once"):
        pack(FIELDS, [[view]], capacity, REFERENCE)


def test_missing_statistics_are_an_error() -> None:
    sensor = dataclasses.replace(optical("s2", 2, 4.0), mean=None, std=None)
    spec = CorpusSpec("one", (ModalitySpec("s2", optical("s2", 2, 4.0), 4, 4, dtype="uint16"),))
    view = make_view(spec, 0, 4.0, ("s2",))
    bare = CorpusSpec("one", (ModalitySpec("s2", sensor, 4, 4, dtype="uint16"),))
    with pytest.raises(ValueError, match="has no mean and std"):
        pack(bare, [[view]], exact_capacity(bare, [[view]], REFERENCE), REFERENCE)
