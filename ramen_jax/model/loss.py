"""The reconstruction loss: squared errors of masked pixels, as sums over counts.

Per modality: the sum of masked errors over the number of masked values of the GLOBAL batch; the loss is the sum
over modalities (official losses.py `MAEReconstructionLoss`). Counts come first and from the rows alone, so neither
packing nor micro-batches nor devices change the gradient.

Two targets (trap `target`). `per_pixel`, the reference, normalises each pixel across its channels: with two channels
only the sign of their difference is left, with one nothing. `standardised` is the normalised input itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ramen_jax.model.images import normalised, observed
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import FRAME_NONE, Images, Rows

TARGETS = ("per_pixel", "standardised")
VARIANCE_EPS = 1e-6


def check_target(target: str, bands: int, modality: str) -> None:
    """Refuse the reference target where it is undefined.

    Raises:
        ValueError: an unknown target, or `per_pixel` with a single band (its variance would be 0/0).
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target '{target}'; choose one of {', '.join(TARGETS)}")
    if target == "per_pixel" and bands < 2:
        raise ValueError(
            f"modality '{modality}' has one band: the reference target normalises each pixel across its bands, "
            "which leaves nothing of one; set traps.target = 'standardised' (recipe 'fixed') or add a band"
        )


def targets(values: jax.Array, target: str) -> jax.Array:
    """What the decoder has to predict, [R,S,T,C,H,W], from the normalised images."""
    if target == "standardised":
        return values
    bands = values.shape[3]
    mean = jnp.mean(values, axis=3, keepdims=True)
    var = jnp.sum(jnp.square(values - mean), axis=3, keepdims=True) / (bands - 1)
    return (values - mean) / jnp.sqrt(var + VARIANCE_EPS)


def pixel_mask(images: Images) -> jax.Array:
    """1 where the token over a pixel is hidden, [R,S,H,W] float32; 0 in empty slots."""
    rows = images.mask_rows_RxSxH[:, :, :, None]
    cols = images.mask_cols_RxSxW[:, :, None, :]
    masked = jnp.take_along_axis(images.mask_RxSxGxG, rows, axis=2)
    masked = jnp.take_along_axis(masked, jnp.broadcast_to(cols, (*masked.shape[:3], cols.shape[-1])), axis=3)
    return masked.astype(jnp.float32) * (images.view_RxS > 0)[:, :, None, None]


def weights(images: Images, missing: str) -> tuple[jax.Array, jax.Array]:
    """Weight of each pixel and date [R,S,T,H,W], and of each band within it, broadcastable to [R,S,T,C,H,W].

    `zeros` counts what was never measured as a zero to predict (the reference); `excluded` leaves it out.
    """
    frames = (images.frames_RxSxT != FRAME_NONE).astype(jnp.float32)[:, :, :, None, None]
    pixels = pixel_mask(images)[:, :, None] * frames
    if missing == "zeros":
        bands = images.values_RxSxTxCxHxW.shape[3]
        return pixels, jnp.full((1, 1, 1, 1, 1, 1), 1.0 / bands)
    known = observed(images).astype(jnp.float32)
    share = jnp.sum(known, axis=3, keepdims=True)
    return pixels * (share[:, :, :, 0] > 0), known / jnp.maximum(share, 1.0)


def loss_counts(rows: Rows, missing: str) -> dict[str, jax.Array]:
    """Masked pixels and dates of each modality: the denominators of the global batch, float32 scalars."""
    return {name: jnp.sum(weights(images, missing)[0]) for name, images in rows.images.items()}


def modality_loss(prediction: jax.Array, images: Images, count: jax.Array, recipe: Recipe) -> jax.Array:
    """The loss of one modality (0 when the batch has none of it)."""
    error = jnp.square(prediction - targets(normalised(images), recipe.target))
    pixel_weight, band_weight = weights(images, recipe.missing)
    per_pixel = jnp.sum(error * band_weight, axis=3)
    return jnp.sum(per_pixel * pixel_weight) / jnp.maximum(count, 1.0)
