"""Images brought to the token grid on the host, before they are packed.

The same numbers as `ramen_jax.model.images.sampled` to rounding. In training the device resamples, because views of
many GSDs share images; a place that is only encoded is resampled once, in its own size: nothing of its pixels is padded
or sent to the device, and another image size compiles nothing.

Shape letters: T dates, C bands, H, W pixels, h, w tokens.
"""

from __future__ import annotations

import numpy as np

from ramen_jax import sampling
from ramen_jax.recipe import Recipe
from ramen_jax.samples import Image
from ramen_jax.sensors import Sensor

ENOUGH = 1e-6  # weight of valid pixels below which a token reads nothing


def on_grid(image: Image, sensor: Sensor, target_gsd: float, grid: tuple[int, int], recipe: Recipe) -> Image:
    """The image as normalised values [T, C, h, w] float32, one per token. Raises ValueError without statistics."""
    if sensor.mean is None or sensor.std is None:
        raise ValueError(f"sensor '{sensor.name}' has no mean and std")
    mean = ((np.asarray(sensor.mean) - sensor.offset) / sensor.scale).astype(np.float32)
    std = (np.asarray(sensor.std) / sensor.scale).astype(np.float32)
    values_TxCxHxW = (image.values - mean[:, None, None]) / std[:, None, None]
    known = image.present[:, None, None]
    if image.valid is not None:
        known = known & image.valid[:, None]
    if not known.all():
        values_TxCxHxW = np.where(known, values_TxCxHxW, np.float32(0))
    down, across = (
        sampling.down_matrix(pixels, sensor.gsd, target_gsd, tokens, recipe.sampling)
        for pixels, tokens in zip(image.values.shape[2:], grid, strict=True)
    )

    def to_grid(values: np.ndarray) -> np.ndarray:
        return down @ (values @ across.T)

    tokens_TxCxhxw = to_grid(values_TxCxHxW)
    if recipe.missing == "excluded" and image.valid is not None:
        weight = to_grid(image.valid[:, None].astype(np.float32))
        tokens_TxCxhxw = np.where(weight > ENOUGH, tokens_TxCxhxw / np.maximum(weight, ENOUGH), 0)
    return Image(tokens_TxCxhxw.astype(np.float32, copy=False), image.dates, np.ones(len(mean), bool))
