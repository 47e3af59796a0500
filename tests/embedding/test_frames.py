"""Which dates a folder of rasters has, read from file names that hold other numbers too."""

from __future__ import annotations

import datetime

import pytest

from ramen_jax.console import UserError
from ramen_jax.embedding.frames import date_of, find_frames, told


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "dates"),
    [
        (("a_2021-04-02.tif", "b_20210110.tif"), ["2021-01-10", "2021-04-02"]),
        (
            ("S2A_MSIL2A_20190520T104629_N0300_R008_T31TCJ_20230607T134905.tif", "S2B_20190101T104629.tif"),
            ["2019-01-01", "2019-05-20"],
        ),
        (
            ("LC08_L2SP_198030_20210402_20210408_02_T1.tif", "LC08_L2SP_198030_20210301_20210308_02_T1.tif"),
            ["2021-03-01", "2021-04-02"],
        ),
        (("20230520T104629.tif", "20230520T224629.tif"), ["2023-05-20", "2023-05-20"]),
        (("123420210402_2020_01_05.tif", "tile_9920210402_2020_02_05.tif"), ["2020-01-05", "2020-02-05"]),
    ],
)
def test_dates_are_those_of_the_acquisition(tmp_path, names, dates):
    found = [date_of(file) for file in find_frames(folder(tmp_path, *names))]
    assert [str(date) for date in found] == dates


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("plot_20110203_2021-04-02.tif", "plot_20110203_2021-05-02.tif"), "2 numbers that read as dates"),
        (("a_20210230.tif", "a_20210302.tif"), "20210230 in the file's name is no date"),
        (("a_20211301.tif", "a_20210302.tif"), "no date in the file's name"),
        (("T31_20230520T104629_B02.tif", "T31_20230520T104629_B03.tif"), "same date 2023-05-20"),
        (("x_20230520_a.tif", "x_2023-05-20_b.tif", "x_20230601.tif"), "2 rasters have the same date"),
    ],
)
def test_doubtful_names_are_refused(tmp_path, names, sentence):
    with pytest.raises(UserError, match=sentence):
        find_frames(folder(tmp_path, *names))


def test_dates_are_told():
    days = [datetime.date(2021, month, 1) for month in range(1, 11)]
    assert "10 dates, read from the file names: 2021-01-01" in told("s2", days)[0]
    assert "more than one raster on the same date" in told("s2", [days[0], days[0]])[1]
    assert told("s2", days[:1]) == []


def test_a_single_raster_may_have_any_name(tmp_path):
    (path,) = find_frames(folder(tmp_path, "a_20210230.tif"))
    assert date_of(path) is None
