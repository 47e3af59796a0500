"""Streaming statistics equal those of all valid pixels in one array, however the images are divided."""

import json

import numpy as np
import pytest

from ramen_jax.corpora.statistics import BandStatistics
from ramen_jax.samples import Image


def make_images(count: int, dtype=np.uint16, level: float = 1000.0) -> list[Image]:
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        values = (level + 50 * number + rng.normal(0, 30, (1 + number % 3, 2, 4, 5))).astype(dtype)
        valid = rng.random((len(values), 4, 5)) > 0.2 if number % 2 else None
        present = np.array([True, number != 3])
        images.append(Image(values, np.zeros(len(values), np.int16), present, valid))
    return images


def pixels_of(images: list[Image], band: int) -> list[np.ndarray]:
    return [
        image.values[:, band][image.valid if image.valid is not None else ...].ravel().astype(np.float64)
        for image in images
        if image.present[band]
    ]


@pytest.mark.parametrize(
    ("dtype", "level"), [(np.uint16, 1000.0), (np.float32, 0.1), (np.int16, -200.0), (np.float32, 1e6)]
)
@pytest.mark.parametrize("groups", [1, 3, 7])
def test_pooled_equals_one_pass_over_everything(dtype, level, groups):
    images = make_images(7, dtype, level)
    parts = [BandStatistics.empty(2) for _ in range(groups)]
    for number, image in enumerate(images):
        parts[number % groups].add(image)
    total = BandStatistics.empty(2)
    for part in parts:
        total.merge(BandStatistics.from_dict(json.loads(json.dumps(part.to_dict()))))
    result = total.result(scale=1.0, offset=0.0)
    for band in range(2):
        found = pixels_of(images, band)
        everything = np.concatenate(found)
        assert result["pooled"]["count"][band] == everything.size
        np.testing.assert_allclose(result["pooled"]["mean"][band], everything.mean(), rtol=1e-12)
        np.testing.assert_allclose(result["pooled"]["std"][band], everything.std(), rtol=1e-9)
        means, stds = [x.mean() for x in found], [x.std(ddof=1) for x in found]
        np.testing.assert_allclose(result["reference"]["mean"][band], np.mean(means), rtol=1e-12)
        np.testing.assert_allclose(result["reference"]["std"][band], np.mean(stds), rtol=1e-9)


def test_scale_and_offset_give_physical_units():
    statistics = BandStatistics.empty(2)
    for image in make_images(4):
        statistics.add(image)
    stored, physical = statistics.result(1.0, 0.0), statistics.result(-0.5, 7.0)
    for kind in ("pooled", "reference"):
        np.testing.assert_allclose(physical[kind]["mean"], np.array(stored[kind]["mean"]) * -0.5 + 7)
        np.testing.assert_allclose(physical[kind]["std"], np.array(stored[kind]["std"]) * 0.5)


def test_a_band_never_seen_has_no_statistics():
    statistics = BandStatistics.empty(2)
    image = make_images(1)[0]
    statistics.add(Image(image.values, image.dates, np.array([True, False])))
    result = statistics.result(1.0, 0.0)
    assert result["pooled"]["mean"][1] is None
    assert result["reference"]["std"][1] is None
    assert result["pooled"]["count"][1] == 0


def test_a_single_pixel_has_no_spread():
    statistics = BandStatistics.empty(1)
    statistics.add(Image(np.full((1, 1, 1, 1), 5, np.uint8), np.zeros(1, np.int16), np.ones(1, bool)))
    assert statistics.result(1.0, 0.0)["pooled"] == {"mean": [5.0], "std": [None], "count": [1.0]}
