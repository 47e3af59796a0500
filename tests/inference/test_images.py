"""Arrays as people have them: masked, of any byte order and type, dated in any way; what is none is refused."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax import samples
from ramen_jax.console import UserError
from ramen_jax.inference.images import Image, day_of_year, to_sample
from ramen_jax.sensors import Sensor

EYE = Sensor.from_dict({"name": "eye", "gsd": 10, "bands": {"red": 665, "nir": 842}})


def stored(image: Image, sensor: Sensor = EYE) -> samples.Image:
    return to_sample({"eye": image}, {"eye": sensor}, 20.0).images["eye"]


@settings(max_examples=60, deadline=None)
@given(
    day=st.dates(datetime.date(1950, 1, 1), datetime.date(2100, 12, 31)),
    unit=st.sampled_from(["D", "h", "m", "s", "ms", "us", "ns"]),
)
def test_every_way_to_write_a_date_is_the_same_day(day, unit):
    wanted = day.timetuple().tm_yday
    moment = np.datetime64(day.isoformat()).astype(f"datetime64[{unit}]")
    for date in (
        day,
        day.isoformat(),
        day.isoformat() + "T10:20:30Z",
        moment,
        np.array(moment),
        wanted,
        float(wanted),
    ):
        assert day_of_year(date) == wanted
    assert day_of_year(datetime.datetime(day.year, day.month, day.day, 23, 59)) == wanted


@pytest.mark.parametrize(
    ("date", "sentence"),
    [
        *(
            (missing, "a date is missing")
            for missing in (None, float("nan"), np.nan, np.datetime64("NaT"), np.ma.masked)
        ),
        (np.datetime64("NaT", "ns"), "a date is missing"),
        (np.datetime64("2021-04"), "names no day"),
        (np.datetime64("2021"), "names no day"),
        *(
            (odd, "whole day of year from 1 to 366")
            for odd in (-3, 367, 1_577_836_800, 5.5, np.inf, [1, 2], b"5")
        ),
        *((text, "is not a date") for text in ("2021-02-30", "yesterday", "", "NaT")),
    ],
)
def test_what_is_no_date_is_refused(date: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Image(np.ones((3, 2, 4, 4)), [5, date, 366])


def test_dates_of_a_series_may_come_as_one_array():
    days = np.array(["2020-01-05", "2020-12-31"], "datetime64[ns]")
    assert Image(np.ones((2, 2, 4, 4)), days).days.tolist() == [5, 366]
    assert Image(np.ones((2, 4, 4)), "2020-12-31").days.tolist() == [366]
    with pytest.raises(UserError, match="1 dates for 2 frames"):
        Image(np.ones((2, 2, 4, 4)), "2020-12-31")


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "?"]),
    order=st.sampled_from("<>"),
    layout=st.sampled_from("CF"),
)
def test_the_type_and_the_order_of_bytes_change_nothing(dtype, order, layout):
    """Catches `>f4`, which is called float32 like any other."""
    plain = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, (1, 2, 4, 6))
    image = stored(Image(np.array(plain, np.dtype(dtype).newbyteorder(order), order=layout)))
    assert image.values.dtype.isnative
    assert image.values.dtype.name in samples.DTYPES
    np.testing.assert_array_equal(image.values, plain)


@settings(max_examples=80, deadline=None)
@given(
    marks=st.lists(
        st.tuples(
            st.sampled_from(["mask", "nan", "inf", "nodata", "valid"]),
            *[st.integers(0, n - 1) for n in (2, 2, 4, 6)],
        ),
        max_size=5,
    ),
    dtype=st.sampled_from(["f2", "f4", "f8", ">f4"]),
)
def test_a_pixel_is_missing_when_anything_says_so(marks, dtype):
    values, valid = np.full((2, 2, 4, 6), 100.0), np.ones((2, 4, 6), bool)
    mask, expected = np.zeros(values.shape, bool), np.ones((2, 4, 6), bool)
    for way, t, c, y, x in marks:
        expected[t, y, x] = False
        if way == "mask":
            mask[t, c, y, x], values[t, c, y, x] = True, 1e4
        elif way == "valid":
            valid[t, y, x] = False
        else:
            values[t, c, y, x] = {"nan": np.nan, "inf": -np.inf, "nodata": -9999}[way]
    sensor = Sensor.from_dict({**EYE.to_dict(), "nodata": -9999})
    given = np.ma.MaskedArray(values.astype(dtype), mask=mask)
    image = stored(Image(given, [5, 100], valid=valid), sensor)
    found = np.ones((2, 4, 6), bool) if image.valid is None else image.valid
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(image.values).all()


def test_masks_of_other_forms():
    values = np.ones((2, 4, 4), np.int16)
    assert stored(Image(np.ma.MaskedArray(values))).valid is None
    assert not stored(Image(np.ma.masked_all((2, 4, 4), np.int16))).valid.any()
    whole = Image(values, valid=np.ma.MaskedArray(np.ones((4, 4), bool), mask=np.eye(4, dtype=bool)))
    np.testing.assert_array_equal(stored(whole).valid[0], ~np.eye(4, dtype=bool))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.ones((2, 4, 4), np.complex64), "complex numbers"),
        (np.array([[["a"]]]), "real numbers"),
        (np.array([[[None]]]), "real numbers"),
        (np.ones((4, 4)), r"\[T, C, H, W\]"),
        (np.ones((2, 0, 4)), "none of them 0"),
    ],
)
def test_what_is_no_image_is_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Image(values)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"valid has shape \(3, 3\), expected \(1, 4, 4\) or \(4, 4\)"):
        Image(np.ones((2, 4, 4)), valid=np.ones((3, 3), bool))


def test_values_too_large_for_single_precision_were_not_measured():
    values = np.ones((2, 4, 4))
    values[0, 1, 1] = 1e300
    assert not stored(Image(values)).valid[0, 1, 1]
