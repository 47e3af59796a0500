"""Mean and standard deviation per band over valid pixels: streaming, mergeable, stable.

Every image is reduced to (count, mean, sum of squared deviations) in float64 and merged by Chan's formula
(Chan, Golub and LeVeque, 1979), so that a corpus may be cut among any number of processes. Two results:

- `pooled`: mean and std over all valid pixels of all images, as if they lay in one array.
- `reference`: the mean over images of each image's mean and of its unbiased std, which is what the official code
  calls mean and std. It is smaller than the pooled std whenever images differ from each other.

Legend of shape suffixes: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ramen_jax.samples import Image


@dataclass
class BandStatistics:
    """Running statistics of one modality, in stored units; every field is a float64 array [C].

    Attributes:
      count: valid pixels so far.
      mean: their mean.
      square: sum of squared deviations from it.
      images: images with at least one valid pixel.
      image_means, image_stds: sums over images of the mean and of the unbiased std within each.
    """

    count: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    images: np.ndarray
    image_means: np.ndarray
    image_stds: np.ndarray

    @classmethod
    def empty(cls, bands: int) -> BandStatistics:
        return cls(*(np.zeros(bands) for _ in fields(cls)))

    def add(self, image: Image) -> None:
        """Takes in the valid pixels of the bands that are present."""
        one = BandStatistics.empty(image.values.shape[1])
        for band in np.flatnonzero(image.present):
            pixels_TxHxW = image.values[:, band]
            pixels = pixels_TxHxW.ravel() if image.valid is None else pixels_TxHxW[image.valid]
            if pixels.size:
                one.count[band] = pixels.size
                one.mean[band], one.square[band] = _moments(pixels)
        one.images = (one.count > 0).astype(np.float64)
        one.image_means = one.mean.copy()
        one.image_stds = np.sqrt(one.square / np.maximum(one.count - 1, 1))
        self.merge(one)

    def merge(self, other: BandStatistics) -> None:
        """Takes in another running statistic, as if its images had been added here."""
        total = self.count + other.count
        share = np.divide(other.count, total, out=np.zeros_like(total), where=total > 0)
        distance = other.mean - self.mean
        self.square += other.square + distance**2 * self.count * share
        self.mean += distance * share
        self.count = total
        self.images += other.images
        self.image_means += other.image_means
        self.image_stds += other.image_stds

    def result(self, scale: float, offset: float) -> dict[str, dict[str, list[float | None]]]:
        """`{"pooled": {mean, std, count}, "reference": {mean, std}}` in physical units (stored * scale + offset).

        A band without a single valid pixel has mean and std None; one that never varies has std None.
        """
        images = np.maximum(self.images, 1)
        variance = self.square / np.maximum(self.count, 1)

        def physical(mean: np.ndarray, std: np.ndarray) -> dict[str, list[float | None]]:
            return {
                "mean": _known(mean * scale + offset, self.count),
                "std": [value or None for value in _known(std * abs(scale), self.count)],
            }

        pooled = physical(self.mean, np.sqrt(variance))
        return {
            "pooled": {**pooled, "count": self.count.tolist()},
            "reference": physical(self.image_means / images, self.image_stds / images),
        }

    def to_dict(self) -> dict[str, list[float]]:
        """Exact JSON form (Python prints floats so that they read back equal)."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BandStatistics:
        return cls(**{name: np.array(numbers, np.float64) for name, numbers in values.items()})


def _moments(pixels: np.ndarray) -> tuple[float, float]:
    """Mean and sum of squared deviations, to the same bits on any number of threads (so no BLAS)."""
    if pixels.dtype == np.uint8:
        counts, levels = np.bincount(pixels, minlength=256), np.arange(256.0)
        mean = float((counts * levels).sum()) / pixels.size
        return mean, float((counts * np.square(levels - mean)).sum())
    mean = float(pixels.mean(dtype=np.float64))
    # The dtype is named because a Python float would leave float32 pixels in float32.
    return mean, float(np.square(np.subtract(pixels, mean, dtype=np.float64)).sum())


def _known(values: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [float(value) if pixels > 0 else None for value, pixels in zip(values, count, strict=True)]
