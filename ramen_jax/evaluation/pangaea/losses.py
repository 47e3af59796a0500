"""The benchmark's losses: scalars from logits [B, H, W, C] and labels [B, H, W], gradients through the logits only.

    loss = build("cross_entropy", ignore_index=-1)
    value = loss(logits, labels)

Every loss is a sum over the counted pixels (or samples) over their number, so it may be taken over sharded arrays. A
batch without any counted pixel gives NaN, as in the benchmark; a training step must refuse it before the update.

Shape letters: B places, H, W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.console import DATA, USAGE, UserError, close_names

Loss = Callable[[jax.Array, jax.Array], jax.Array]
NAMES = ("cross_entropy", "weighted_cross_entropy", "dice", "binary_cross_entropy", "mse")
SMOOTH = 1e-6


def build(
    name: str,
    *,
    ignore_index: int = -1,
    distribution: Sequence[float] = (),
    mask_probabilities: bool = False,
) -> Loss:
    """The loss of that name as a function of (logits, labels).

    Args:
        name: one of NAMES.
        ignore_index: label of the pixels that do not count.
        distribution: share of each class, for `weighted_cross_entropy`: weights are 1 / share.
        mask_probabilities: for `dice`, see there.

    Raises:
        UserError: an unknown name, or shares that give no weight.
    """
    if name == "cross_entropy":
        return partial(cross_entropy, ignore_index=ignore_index)
    if name == "weighted_cross_entropy":
        if not distribution or min(distribution) <= 0:
            raise UserError(
                f"weighted_cross_entropy weighs a class by 1 / its share, found the shares {list(distribution)}; "
                "use cross_entropy, or a share above 0 for every class",
                DATA,
            )
        weights = 1 / np.asarray(distribution, np.float32)
        return partial(cross_entropy, ignore_index=ignore_index, weights_C=weights)
    if name == "dice":
        return partial(dice, ignore_index=ignore_index, mask_probabilities=mask_probabilities)
    if name == "binary_cross_entropy":
        return partial(binary_cross_entropy, ignore_index=ignore_index)
    if name == "mse":
        return mean_squared_error
    raise UserError(f"no loss '{name}'; {close_names(name, NAMES)}", USAGE)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_index: int = -1, weights_C: np.ndarray | None = None
) -> jax.Array:
    """Softmax cross-entropy, the (weighted) mean over the pixels that count.

    Args:
        logits: [..., C]. labels: integers [...], outside 0..C-1 only where they equal `ignore_index`.
        weights_C: one weight per class; the mean then divides by the sum of the pixels' weights.
    """
    classes = logits.shape[-1]
    valid = labels != ignore_index
    labels = jnp.where(valid, labels, 0)
    # A class weight is looked up by a one-hot product: no gather, which is slow on TPU.
    one_hot = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    negative = -jnp.sum(jax.nn.log_softmax(logits.astype(jnp.float32)) * one_hot, axis=-1)
    weight = valid.astype(jnp.float32)
    if weights_C is not None:
        if len(weights_C) != classes:
            raise ValueError(f"{len(weights_C)} class weights for {classes} channels of logits")
        weight = weight * jnp.einsum("...c,c->...", one_hot, jnp.asarray(weights_C))
    return jnp.sum(negative * weight) / jnp.sum(weight)


def dice(
    logits_BxHxWxC: jax.Array,
    labels_BxHxW: jax.Array,
    *,
    ignore_index: int = -1,
    mask_probabilities: bool = False,
) -> jax.Array:
    """1 - mean dice score over the classes of the samples that have a pixel that counts.

    One logit is a sigmoid against labels 0 and 1, several are a softmax. Labels are cleared where they do not count;
    the benchmark leaves the probabilities there in the sum, so they are pushed down where nothing is known:
    `mask_probabilities` clears them too.
    """
    classes = logits_BxHxWxC.shape[-1]
    valid_BxHxWx1 = (labels_BxHxW != ignore_index)[..., None]
    labels = jnp.where(valid_BxHxWx1[..., 0], labels_BxHxW, 0)
    logits = logits_BxHxWxC.astype(jnp.float32)
    if classes == 1:
        probabilities, target = jax.nn.sigmoid(logits), labels[..., None].astype(jnp.float32)
    else:
        probabilities, target = jax.nn.softmax(logits), jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    target = target * valid_BxHxWx1
    if mask_probabilities:
        probabilities = probabilities * valid_BxHxWx1
    overlap, union = _pixel_sum(probabilities * target), _pixel_sum(probabilities + target)
    score_BxC = (2 * overlap + SMOOTH) / (union + SMOOTH)
    kept_Bx1 = jnp.any(valid_BxHxWx1, axis=(1, 2)).astype(jnp.float32)
    return 1 - jnp.sum(score_BxC * kept_Bx1) / (jnp.sum(kept_Bx1) * classes)


def _pixel_sum(x_BxHxWxC: jax.Array) -> jax.Array:
    """[B, C]: the sum over pixels, by the mean of rows' means, which rounds less than one long float32 sum."""
    return jnp.mean(jnp.mean(x_BxHxWxC, axis=2), axis=1) * (x_BxHxWxC.shape[1] * x_BxHxWxC.shape[2])


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, *, ignore_index: int = -1) -> jax.Array:
    """Sigmoid cross-entropy, the mean over the entries that count.

    Args:
        logits: [B, C] against labels [B, C] (several labels per place), or [B, H, W, 1] against [B, H, W].
    """
    logits = _without_channel(logits, labels).astype(jnp.float32)
    valid = (labels != ignore_index).astype(jnp.float32)
    # log(1 + exp(-|x|)) never overflows.
    entropy = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(entropy * valid) / jnp.sum(valid)


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of [B, H, W, 1] against [B, H, W]; every pixel counts, as in the benchmark."""
    return jnp.mean(jnp.square(_without_channel(prediction, target).astype(jnp.float32) - target))


def _without_channel(values: jax.Array, labels: jax.Array) -> jax.Array:
    if values.ndim == labels.ndim + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != labels.shape:
        raise ValueError(f"predictions of shape {values.shape} against labels of shape {labels.shape}")
    return values
