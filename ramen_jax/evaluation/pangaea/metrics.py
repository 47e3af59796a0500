"""Scores, by two definitions: `published` (the benchmark's evaluator) and `corrected`.

What the benchmark's evaluator does and `corrected` does not:
- precision and recall change places (F1 and IoU are not touched by it);
- "mAcc" is the share of right pixels, not the mean over classes;
- a class that neither truth nor prediction holds scores 0 and counts in the mean;
- the mean squared error is the mean over batches, whatever their sizes;
- k-NN's F1 of several labels is a mean over batches.

Counts are made on the device a batch at a time; everything else is numpy in float64 on the host. Segmentation scores
are percentages, classification scores are shares. A binary task of one logit has two metric classes.

Shape letters: B places, H, W pixels, C metric classes, N samples.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PUBLISHED, CORRECTED = "published", "corrected"
TINY = 1e-6
Scores = dict[str, Any]


def predict(logits: jax.Array) -> jax.Array:
    """Classes int32 [...] from logits [..., C]: sigmoid above a half for one channel, else the highest."""
    if logits.shape[-1] == 1:
        return (jax.nn.sigmoid(logits[..., 0]) > 0.5).astype(jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def confusion(prediction: jax.Array, labels: jax.Array, classes: int, ignore_index: int = -1) -> jax.Array:
    """Pixel counts int32 [C, C], rows truth, columns prediction.

    Pixels that do not count, and labels outside the classes, are in no cell: the readers refuse the latter. Sum
    batches in int64.
    """
    known = (labels != ignore_index) & (labels >= 0) & (labels < classes)
    cell = jnp.where(known, labels * classes + prediction, classes * classes)
    counts = jnp.bincount(cell.reshape(-1).astype(jnp.int32), length=classes * classes + 1)
    return counts[:-1].reshape(classes, classes).astype(jnp.int32)


def segmentation(matrix_CxC: np.ndarray, definition: str, ignore_index: int = -1) -> Scores:
    """IoU, F1, precision and recall per class and their means, in percent.

    Args:
        matrix_CxC: counts of the whole split, rows truth, columns prediction.
        ignore_index: a class with this index is left out of lists and means.

    Returns:
        `IoU`, `F1`, `Precision`, `Recall`: one value per class that is not ignored, None where it is not defined
        (`corrected` only); `mIoU`, `mF1`, `mAcc`, and `Acc`, the share of right pixels.
    """
    matrix = np.asarray(matrix_CxC, np.float64)
    kept = [c for c in range(len(matrix)) if c != ignore_index]
    right, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    if _published(definition):
        union = truth + predicted - right
        iou = 100 * right / (union + TINY)
        precision, recall = 100 * right / (truth + TINY), 100 * right / (predicted + TINY)
        f1 = 2 * precision * recall / (precision + recall + TINY)
        accuracy = 100 * right.sum() / (matrix.sum() + TINY)
        return {
            "IoU": iou[kept].tolist(),
            "mIoU": _mean(iou[kept]),
            "F1": f1[kept].tolist(),
            "mF1": _mean(f1[kept]),
            "mAcc": float(accuracy),
            "Acc": float(accuracy),
            "Precision": precision[kept].tolist(),
            "Recall": recall[kept].tolist(),
        }
    iou = _percent(right, truth + predicted - right)[kept]
    f1 = _percent(2 * right, truth + predicted)[kept]
    recall = _percent(right, truth)[kept]
    return {
        "IoU": _listed(iou),
        "mIoU": _mean(iou),
        "F1": _listed(f1),
        "mF1": _mean(f1),
        "mAcc": _mean(recall),
        "Acc": float(100 * right.sum() / max(matrix.sum(), 1)),
        "Precision": _listed(_percent(right, predicted)[kept]),
        "Recall": _listed(recall),
    }


def regression_sums(
    prediction: jax.Array, target: jax.Array, valid: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Sums over one batch, on the device: squared error, absolute error and number of valid values.

    Args:
        prediction: [B, H, W] or [B, H, W, 1]; target: [B, H, W]; valid: bool [B, H, W], default everywhere.
    """
    error = prediction.reshape(target.shape).astype(jnp.float32) - target
    known = jnp.ones(target.shape, bool) if valid is None else valid
    error = jnp.where(known, error, 0.0)
    return {
        "squared": jnp.sum(jnp.square(error)),
        "absolute": jnp.sum(jnp.abs(error)),
        "count": jnp.sum(known),
    }


def regression(batches: list[dict[str, Any]], definition: str) -> Scores:
    """MSE, RMSE and MAE of a split, in the target's units, from `regression_sums` of its batches."""
    squared, absolute, count = (
        np.array([float(batch[key]) for batch in batches]) for key in ("squared", "absolute", "count")
    )
    if _published(definition):
        mse, mae = np.mean(squared / count), np.mean(absolute / count)
    else:
        mse, mae = squared.sum() / count.sum(), absolute.sum() / count.sum()
    return {"MSE": float(mse), "RMSE": math.sqrt(mse), "MAE": float(mae)}


def classification(scores_NxC: np.ndarray, labels_N: np.ndarray, definition: str) -> Scores:
    """One label per sample: accuracy, and precision, recall and F1 as means over classes; shares from 0 to 1.

    `published` averages over every class of the task, `corrected` over those that truth or prediction hold.
    """
    classes = scores_NxC.shape[1]
    predicted_N = np.argmax(scores_NxC, axis=1)
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (np.asarray(labels_N), predicted_N), 1)
    right, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    kept = np.full(classes, True) if _published(definition) else truth + predicted > 0
    return {
        "accuracy": float(right.sum() / max(matrix.sum(), 1)),
        "precision": _mean(_share(right, predicted)[kept]),
        "recall": _mean(_share(right, truth)[kept]),
        "F1": _mean(_share(2 * right, truth + predicted)[kept]),
    }


def multi_label(predicted_NxC: np.ndarray, labels_NxC: np.ndarray) -> Scores:
    """Several labels per sample, 0 or 1: share of samples with every label right; micro precision, recall and F1."""
    predicted, truth = np.asarray(predicted_NxC, bool), np.asarray(labels_NxC, bool)
    right = np.sum(predicted & truth)
    return {
        "accuracy": float(np.mean(np.all(predicted == truth, axis=1))),
        "precision": float(_share(right, predicted.sum())),
        "recall": float(_share(right, truth.sum())),
        "F1": float(_share(2 * right, predicted.sum() + truth.sum())),
    }


def mean_average_precision(scores_NxC: np.ndarray, labels_NxC: np.ndarray) -> float:
    """Mean over classes with a positive of the area under precision against recall, by steps at every new score."""
    areas = []
    for scores, truth in zip(np.asarray(scores_NxC).T, np.asarray(labels_NxC, bool).T, strict=True):
        if not truth.any():
            continue
        order = np.argsort(-scores, kind="stable")
        found = np.cumsum(truth[order])
        # Samples of one score are found together: only the last of them is a threshold.
        last = np.append(np.diff(scores[order]) != 0, True)
        found, taken = found[last], np.flatnonzero(last) + 1
        areas.append(np.sum(np.diff(found, prepend=0) / truth.sum() * found / taken))
    return float(np.mean(areas)) if areas else math.nan


def top_accuracy(ranking_NxC: np.ndarray, labels_N: np.ndarray, places: int) -> float:
    """Share of samples whose label is among the first `places` of its ranking."""
    return float(np.mean(np.any(ranking_NxC[:, :places] == np.asarray(labels_N)[:, None], axis=1)))


def mean_over_batches(values: list[float], sizes: list[int]) -> float:
    """The benchmark's F1 of k-NN with several labels: batch scores weighted by batch size."""
    return float(np.average(values, weights=sizes))


def selection_value(scores: Scores, key: str, outputs: int) -> float:
    """The number that picks the best epoch: of a list, class 1 for a task of one logit and else the mean."""
    value = scores[key]
    if not isinstance(value, list):
        return float(value)
    if outputs == 1:
        return math.nan if value[1] is None else float(value[1])
    return _mean(np.array([math.nan if v is None else v for v in value]))


def is_better(new: float, best: float | None, key: str) -> bool:
    """Strictly better than the best so far: lower for errors, higher for the rest. The first number always is."""
    if math.isnan(new):
        return False
    if best is None:
        return True
    return new < best if key in ("MSE", "RMSE", "MAE") else new > best


def _published(definition: str) -> bool:
    if definition not in (PUBLISHED, CORRECTED):
        raise ValueError(f"metrics are '{PUBLISHED}' or '{CORRECTED}', found '{definition}'")
    return definition == PUBLISHED


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 part / whole, NaN where the whole is 0."""
    return 100 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _mean(values: np.ndarray) -> float:
    """The mean of the defined values; 0 where none is, as in the benchmark."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else 0.0
