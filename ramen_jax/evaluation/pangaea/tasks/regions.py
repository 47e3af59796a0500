"""What is seen of an example: a crop (at random, around a labelled pixel, by weight of classes), or all of it resized.

    region = training_region(task, example, key)                # by the task's command

Every draw is a function of its key, so that an epoch can be repeated. Nothing is mirrored, turned or recoloured: the
benchmark does none of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ramen_jax.corpora import BadItem
from ramen_jax.counter_rng import below, combine, raw_bits
from ramen_jax.evaluation.pangaea.tasks.task import Example, Task
from ramen_jax.samples import Image

RULES = ("crop", "focus_crop", "importance_crop", "resize")
_TRIALS = 10  # of an importance crop


def training_region(task: Task, example: Example, draw: int, epoch_key: int = 0) -> Example:
    """What a training step sees of an example, by the task's command.

    Args:
      draw: number of the access (epoch and copy): another draw, another crop.
      epoch_key: mixed into the draw, for several seeds.

    Errors: BadItem, for images smaller than the crop and for focus crops of examples without a labelled pixel.
    """
    side, rule = task.command.crop, task.command.region
    if rule == "resize":
        return resize(example, side)
    key = combine(task.protocol.seed, epoch_key, "region", example.sample.id, draw)
    height, width = next(iter(example.sample.images.values())).values.shape[2:]
    if height < side or width < side:
        raise BadItem(example.sample.id, f"{height}x{width} pixels are smaller than the crop of {side}")
    if (height, width) == (side, side):
        return example
    if rule == "focus_crop":
        published = task.protocol.focus_crop == "published"
        top, left = focus_origin(key, example.target, side, task.ignore_index, published, example.sample.id)
    elif rule == "importance_crop":
        top, left = importance_origin(key, example.target, side, task.ignore_index, task.distribution)
    else:
        top, left = random_origin(key, height, width, side)
    return crop(example, top, left, side)


def random_origin(key: int, height: int, width: int, side: int) -> tuple[int, int]:
    """The first row and column of a crop, uniform over those that fit."""
    bits = raw_bits(key, 2)
    return int(below(bits[:1], height - side + 1)[0]), int(below(bits[1:], width - side + 1)[0])


def focus_origin(
    key: int, target_HxW: np.ndarray, side: int, ignore_index: int, published: bool, name: str = ""
) -> tuple[int, int]:
    """A crop around a labelled pixel drawn at random.

    The benchmark's bounds are off by one at both ends: its crop may just miss the pixel, and may leave the image by one
    row or column (`published`). Errors: BadItem without a labelled pixel.
    """
    labelled = np.flatnonzero(target_HxW != ignore_index)
    if not labelled.size:
        raise BadItem(name, "no labelled pixel to crop around")
    bits = raw_bits(key, 3)
    pixel = int(labelled[below(bits[:1], labelled.size)[0]])
    origin = []
    for bit, position, size in zip(
        bits[1:], divmod(pixel, target_HxW.shape[1]), target_HxW.shape, strict=True
    ):
        slack = 0 if published else 1
        low, high = max(0, position - side + slack), min(position, size - side + 1 - slack)
        origin.append(low + int(below(np.array([bit]), high - low + 1)[0]))
    return origin[0], origin[1]


def importance_origin(
    key: int, target_HxW: np.ndarray, side: int, ignore_index: int, distribution: tuple[float, ...]
) -> tuple[int, int]:
    """One of ten random crops, drawn with probabilities proportional to the mean of 1 / class share over its pixels."""
    weights = 1.0 / np.maximum(np.asarray(distribution, np.float64), 1e-6)
    weight_HxW = np.full(target_HxW.shape, 1e-6)
    valid = target_HxW != ignore_index
    weight_HxW[valid] = weights[target_HxW[valid]]
    height, width = target_HxW.shape
    origins = [random_origin(combine(key, trial), height, width, side) for trial in range(_TRIALS)]
    means = np.array([weight_HxW[top : top + side, left : left + side].mean() for top, left in origins])
    position = int(raw_bits(combine(key, "choice"), 1)[0] >> np.uint64(11)) / 2**53
    return origins[int(np.searchsorted(np.cumsum(means) / means.sum(), position, side="right"))]


def crop(example: Example, top: int, left: int, side: int) -> Example:
    """Rows and columns of every image and of a map-like target. What lies outside the image is 0, in the target too."""

    def cut(array: np.ndarray) -> np.ndarray:
        part = array[..., top : top + side, left : left + side]
        short = [side - size for size in part.shape[-2:]]
        if any(short):
            part = np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, size) for size in short])
        return np.ascontiguousarray(part)

    return _changed(example, cut, cut if example.target.ndim == 2 else None)


def resize(example: Example, side: int, antialias: bool = True) -> Example:
    """Images brought to `side` x `side` pixels bilinearly, in float32; the target keeps its own grid.

    With `antialias` a coarser image averages, by a triangle as wide as its pixels.
    """

    def change(array: np.ndarray) -> np.ndarray:
        rows, columns = (_bilinear(size, side, antialias) for size in array.shape[-2:])
        if array.dtype == np.bool_:  # a pixel is valid when all it is made of are
            return rows @ (~array).astype(np.float32) @ columns.T < 1e-6
        return (rows @ array.astype(np.float32) @ columns.T).astype(np.float32)

    return _changed(example, change, None)


def resize_labels(example: Example, side: int) -> Example:
    """A map-like target brought to `side` x `side` pixels, each the nearest one."""
    rows, columns = (np.floor(np.arange(side) * size / side).astype(int) for size in example.target.shape)
    return dataclasses.replace(example, target=example.target[rows[:, None], columns])


def _changed(
    example: Example,
    image: Callable[[np.ndarray], np.ndarray],
    target: Callable[[np.ndarray], np.ndarray] | None,
) -> Example:
    images = {
        name: Image(
            image(old.values), old.dates, old.present, None if old.valid is None else image(old.valid)
        )
        for name, old in example.sample.images.items()
    }
    sample = dataclasses.replace(example.sample, images=images)
    return Example(sample, example.target if target is None else target(example.target))


@lru_cache(maxsize=64)
def _bilinear(size: int, wanted: int, antialias: bool) -> np.ndarray:
    """Weights [wanted, size] of a triangle filter with half-pixel centres."""
    scale = size / wanted
    reach = max(scale, 1.0) if antialias else 1.0
    centre = (
        np.clip((np.arange(wanted) + 0.5) * scale - 0.5, 0, size - 1)
        if reach == 1.0
        else (np.arange(wanted) + 0.5) * scale - 0.5
    )
    weights = np.maximum(1 - np.abs(np.arange(size)[None] - centre[:, None]) / reach, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
