"""The reader of Sen1Floods11 on real chips, some of whose files are missing."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import open_task

SPLITS = "v1.1/splits/flood_handlabeled"
LISTS = {
    "train": ("Spain_7370579", "USA_430764"),  # the second without radar and label
    "valid": ("Pakistan_849790", "USA_905409"),  # without optical image
    "test": ("India_900498", "Nigeria_812045"),
}


@pytest.fixture
def chips(real_data, tmp_path):
    """The real folder with lists that name the chips at hand; those it came with name many others."""
    original = real_data / "sen1floods11" / "v1.1"
    (tmp_path / SPLITS).mkdir(parents=True)
    for name in ("data", "Sen1Floods11_Metadata.geojson"):
        (tmp_path / "v1.1" / name).symlink_to(original / name)
    for split, members in LISTS.items():
        lines = [f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n" for chip in members]
        (tmp_path / SPLITS / f"flood_{split}_data.csv").write_text("".join(lines))
    return tmp_path


def read(chips, chip, folder):
    with rasterio.open(chips / f"v1.1/data/flood_events/HandLabeled/{folder}/{chip}_{folder}.tif") as file:
        return file.read()


def test_the_complete_chips_are_read_and_the_others_reported(chips):
    task = open_task("sen1floods11", chips, CORRECTED)
    splits, rejected = task.items()
    assert splits == {"train": ["Spain_7370579"], "val": [], "test": ["India_900498"]}
    told = [str(item) for item in rejected]
    assert len(told) == 4
    for chip, split in (("USA_430764", "train"), ("Pakistan_849790", "val"), ("Nigeria_812045", "test")):
        assert any(f"missing, so chip {chip} of split {split} is left out" in text for text in told)
    with pytest.raises(UserError, match="no complete item in split val; the first problem"):
        task.split("val")


@pytest.mark.parametrize(("split", "chip"), [("train", "Spain_7370579"), ("test", "India_900498")])
def test_pixels_dates_orbit_and_place(chips, split, chip):
    """Samples are the files' pixels; dates and orbit are those of the event, which `published` does not tell."""
    for protocol in (PUBLISHED, CORRECTED):
        example = open_task("sen1floods11", chips, protocol).example(chip, split)
        label = read(chips, chip, "LabelHand")[0]
        assert np.array_equal(example.target, label)
        assert {0, 1} <= set(np.unique(example.target)) <= {-1, 0, 1}
        optical, radar = example.sample.images["optical"], example.sample.images["sar"]
        assert np.array_equal(optical.values[0], read(chips, chip, "S2Hand"))
        backscatter = np.nan_to_num(read(chips, chip, "S1Hand"))
        west, north = example.sample.location
        if protocol is PUBLISHED:
            assert np.array_equal(radar.values[0], backscatter)
            assert (optical.dates.tolist(), radar.dates.tolist()) == ([0], [0])
            continue
        assert np.array_equal(
            radar.values[0, 2:], backscatter
        )  # both events were seen from descending orbits
        assert radar.present.tolist() == [False, False, True, True]
        days = {"Spain": (261, 260), "India": (225, 225)}[chip.split("_")[0]]
        assert (optical.dates.tolist(), radar.dates.tolist()) == ([days[0]], [days[1]])
        box = {"Spain": (-10, 5, 35, 44), "India": (68, 98, 7, 36)}[chip.split("_")[0]]
        assert box[0] < west < box[1]
        assert box[2] < north < box[3]


def test_water_is_darker_in_radar_than_land(chips):
    """Label and images lie on each other. (Mutant: the label upside down.)"""
    for split, chip in (("train", "Spain_7370579"), ("test", "India_900498")):
        example = open_task("sen1floods11", chips).example(chip, split)
        vv, nir = example.sample.images["sar"].values[0, 0], example.sample.images["optical"].values[0, 7]
        water, land = example.target == 1, example.target == 0
        assert vv[water].mean() < vv[land].mean() - 4
        assert nir[water].mean() < 0.75 * nir[land].mean()
