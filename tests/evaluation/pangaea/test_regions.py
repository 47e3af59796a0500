"""Crops and limited labels: functions of their key, inside the image, and the benchmark's slips where asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ramen_jax.corpora import BadItem
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import Example
from ramen_jax.evaluation.pangaea.tasks.regions import (
    crop,
    focus_origin,
    importance_origin,
    random_origin,
    resize,
)
from ramen_jax.evaluation.pangaea.tasks.selection import copies, limited
from ramen_jax.samples import Image, Sample


def example(size: int = 12) -> Example:
    values = np.arange(2 * size * size, dtype=np.float32).reshape(1, 2, size, size) + 1
    image = Image(values, np.zeros(1, np.int16), np.ones(2, bool), np.ones((1, size, size), bool))
    return Example(
        Sample("place", {"eye": image}), np.arange(size * size, dtype=np.int32).reshape(size, size)
    )


def test_random_crops_reach_every_origin_and_nothing_else():
    origins = {random_origin(key, 6, 5, 4) for key in range(300)}
    assert origins == {(row, column) for row in range(3) for column in range(2)}


def test_focus_crops():
    """Corrected: inside the image, around the only labelled pixel. Published: may miss it, may leave by one pixel."""
    for row, column in ((0, 0), (5, 5), (9, 3)):
        target = np.full((10, 10), -1, np.int32)
        target[row, column] = 2
        right = {focus_origin(key, target, 4, -1, False) for key in range(400)}
        slips = {focus_origin(key, target, 4, -1, True) for key in range(400)}
        assert all(top <= row < top + 4 and 0 <= top <= 6 for top, _ in right)
        assert all(left <= column < left + 4 and 0 <= left <= 6 for _, left in right)
        assert right <= slips if (row, column) == (0, 0) else right < slips
    assert any(top == 7 for top, _ in slips)
    with pytest.raises(BadItem, match="no labelled pixel"):
        focus_origin(0, np.full((4, 4), -1, np.int32), 2, -1, False, "place")


def test_importance_crops_prefer_the_rare_class():
    target = np.zeros((40, 40), np.int32)
    target[:10, :10] = 1
    hits = [importance_origin(key, target, 10, -1, (0.99, 0.01)) for key in range(100)]
    plain = [random_origin(key, 40, 40, 10) for key in range(100)]
    share = [np.mean([target[y : y + 10, x : x + 10].any() for y, x in origins]) for origins in (hits, plain)]
    assert share[0] > 2 * share[1]


def test_a_crop_that_leaves_the_image_is_filled_with_zeros():
    cut = crop(example(12), 9, 2, 4)
    assert cut.target.shape == (4, 4)
    assert not cut.target[-1].any()
    assert not cut.sample.images["eye"].values[..., -1, :].any()
    assert np.array_equal(cut.target[:3], example(12).target[9:, 2:6])


def test_resizing_keeps_constants_and_follows_pytorch():
    torch = pytest.importorskip("torch")
    values = example(12).sample.images["eye"].values
    for side, antialias in ((5, True), (5, False), (24, True), (17, False)):
        found = resize(example(12), side, antialias).sample.images["eye"].values
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(values[0][None]), size=(side, side), mode="bilinear", antialias=antialias
        )
        np.testing.assert_allclose(found[0], expected[0].numpy(), atol=2e-4)


class Labels:
    """The part of a task that `limited` asks: 60 places, of which six show another class."""

    name, family, ignore_index, outputs, classes = "toy", "segmentation", -1, 2, ("a", "b")

    def __init__(self, protocol=PUBLISHED) -> None:
        self.protocol = protocol

    def split(self, name):
        return [f"{index}" for index in range(60)]

    def example(self, item, split):
        target = np.zeros((4, 4), np.int32)
        if int(item) % 10 == 0:
            target[: 1 + int(item) // 20] = 1
        return Example(Sample(item, {}), target)


def test_limited_labels_are_stratified_and_repeatable():
    kept = limited(Labels(), "train", 0.1)
    assert kept == limited(Labels(), "train", 0.1)
    # Places in three groups with another class (a share up to a third, two thirds, above) and 54 others.
    rare = [item for item in kept if int(item) % 10 == 0]
    assert len(kept) - len(rare) == 5
    assert 1 <= len(rare) <= 3
    other = limited(Labels(dataclasses.replace(PUBLISHED, seed=1)), "train", 0.1)
    assert other != kept
    assert len(other) == len(kept)
    assert limited(Labels(), "train", 1) == Labels().split("train")


def test_copies_stand_in_a_row():
    assert copies(["a", "b"], 2) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
