"""Losses and scores: hand-made numbers, both definitions, what is ignored, what does not exist."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea import losses, metrics

# rows truth, columns prediction; class 2 appears nowhere
MATRIX = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])


def pixels(classes: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, 5, 6, classes)).astype(np.float32)
    labels = generator.integers(-1, max(classes, 2), size=(2, 5, 6)).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(labels)


@pytest.mark.parametrize("name", ["cross_entropy", "dice"])
def test_ignored_pixels_have_no_gradient(name: str) -> None:
    logits, labels = pixels(4)
    loss = losses.build(name, ignore_index=-1, mask_probabilities=True)
    gradient = np.asarray(jax.grad(lambda x: loss(x, labels))(logits))
    assert not np.any(gradient[np.asarray(labels) == -1])
    assert np.any(gradient[np.asarray(labels) != -1])


def test_published_dice_pushes_ignored_pixels_down() -> None:
    logits, labels = pixels(1)
    gradient = jax.grad(lambda x: losses.dice(x, labels))(logits)
    assert np.all(np.asarray(gradient)[np.asarray(labels) == -1] > 0)


@pytest.mark.parametrize("classes", [1, 3])
def test_masked_dice_sees_the_counted_pixels_only(classes: int) -> None:
    """Half of every image is ignored: the loss is that of the other half."""
    logits, labels = pixels(classes)
    labels = jnp.maximum(labels, 0)
    found = losses.dice(logits, labels.at[:, :, 3:].set(-1), mask_probabilities=True)
    np.testing.assert_allclose(found, losses.dice(logits[:, :, :3], labels[:, :, :3]), rtol=1e-5)


def test_dice_leaves_out_a_sample_without_labels() -> None:
    logits, labels = pixels(3)
    alone = losses.dice(logits[:1], labels[:1])
    both = losses.dice(logits, labels.at[1].set(-1))
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_weighted_cross_entropy_divides_by_the_weights() -> None:
    logits, labels = pixels(3)
    found = losses.build("weighted_cross_entropy", distribution=(0.5, 0.3, 0.2))(logits, labels)
    known = np.asarray(labels) >= 0
    values, truth = np.asarray(jax.nn.log_softmax(logits))[known], np.asarray(labels)[known]
    weights = 1 / np.array([0.5, 0.3, 0.2])[truth]
    expected = -np.sum(weights * values[np.arange(len(truth)), truth]) / np.sum(weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    even = losses.build("weighted_cross_entropy", distribution=(0.25, 0.25, 0.25))(logits, labels)
    np.testing.assert_allclose(even, losses.cross_entropy(logits, labels), rtol=1e-6)


def test_binary_cross_entropy_of_large_logits_and_of_one_channel() -> None:
    logits, labels = jnp.array([[100.0, -100.0, 0.0]]), jnp.array([[0, 0, 1]])
    expected = (100 + 0 + math.log(2)) / 3
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, labels), expected, rtol=1e-6)
    logits, labels = pixels(1)
    two = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    expected = losses.cross_entropy(two, labels)
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, labels), expected, rtol=1e-5)


def test_an_all_ignored_batch_gives_no_number() -> None:
    logits, labels = pixels(3)
    for name in ("cross_entropy", "dice"):
        assert math.isnan(losses.build(name)(logits, jnp.full_like(labels, -1)))


def test_wrong_losses() -> None:
    with pytest.raises(UserError, match='did you mean "dice"'):
        losses.build("dise")
    with pytest.raises(UserError, match="share above 0"):
        losses.build("weighted_cross_entropy", distribution=(0.9, 0.1, 0.0))
    with pytest.raises(ValueError, match="2 class weights for 3 channels"):
        losses.build("weighted_cross_entropy", distribution=(0.9, 0.1))(*pixels(3))
    with pytest.raises(ValueError, match="against labels"):
        losses.mean_squared_error(jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 4, 4)))


def test_corrected_scores_by_hand() -> None:
    found = metrics.segmentation(MATRIX, metrics.CORRECTED)
    assert found["IoU"] == pytest.approx([600 / 9, 300 / 6, None])
    assert found["mIoU"] == pytest.approx((600 / 9 + 50) / 2)
    assert found["Precision"] == pytest.approx([600 / 7, 60, None])
    assert found["Recall"] == pytest.approx([75, 75, None])
    assert found["mAcc"] == pytest.approx(75)
    assert found["Acc"] == pytest.approx(75)
    assert found["F1"] == pytest.approx([1200 / 15, 600 / 9, None])


def test_what_the_published_definition_does_otherwise() -> None:
    published, corrected = (metrics.segmentation(MATRIX, name) for name in ("published", "corrected"))
    assert published["Precision"][:2] == pytest.approx(corrected["Recall"][:2])
    assert published["Recall"][:2] == pytest.approx(corrected["Precision"][:2])
    assert published["IoU"][2] == 0
    assert published["mIoU"] == pytest.approx(corrected["mIoU"] * 2 / 3)


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_confusion_counts_every_pixel_that_counts(classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, classes, size=(2, 4, 4)).astype(np.int32)
    prediction = generator.integers(0, classes, size=(2, 4, 4)).astype(np.int32)
    ignore = int(generator.integers(-1, classes))
    found = np.asarray(metrics.confusion(jnp.asarray(prediction), jnp.asarray(labels), classes, ignore))
    expected = np.zeros((classes, classes), int)
    for truth, guess in zip(labels.ravel(), prediction.ravel(), strict=True):
        if truth not in (ignore, -1):
            expected[truth, guess] += 1
    np.testing.assert_array_equal(found, expected)


def test_labels_outside_the_classes_are_in_no_cell() -> None:
    labels = jnp.array([[[0, 1, 255, 7]]])
    found = metrics.confusion(jnp.zeros((1, 1, 4), jnp.int32), labels, 2)
    np.testing.assert_array_equal(found, [[1, 0], [1, 0]])


def test_one_logit_predicts_two_classes() -> None:
    np.testing.assert_array_equal(metrics.predict(jnp.array([[-1.0], [0.0], [2.0]])), [0, 0, 1])
    np.testing.assert_array_equal(metrics.predict(jnp.array([[0.0, 3.0, 1.0]])), [1])


def test_errors_of_uneven_batches() -> None:
    first = metrics.regression_sums(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2), 2.0))
    valid = jnp.array([[[True, False], [False, False]]])
    second = metrics.regression_sums(
        jnp.zeros((1, 2, 2)), jnp.full((1, 2, 2), jnp.nan).at[0, 0, 0].set(4), valid
    )
    published = metrics.regression([first, second], metrics.PUBLISHED)
    corrected = metrics.regression([first, second], metrics.CORRECTED)
    assert published == pytest.approx({"MSE": 10, "RMSE": math.sqrt(10), "MAE": 3})
    assert corrected == pytest.approx({"MSE": 32 / 5, "RMSE": math.sqrt(32 / 5), "MAE": 12 / 5})


def test_classification_by_hand() -> None:
    scores = np.eye(4)[[0, 0, 1, 1]]
    labels = np.array([0, 1, 1, 1])
    published = metrics.classification(scores, labels, metrics.PUBLISHED)
    corrected = metrics.classification(scores, labels, metrics.CORRECTED)
    assert corrected == pytest.approx(
        {"accuracy": 0.75, "precision": 0.75, "recall": 5 / 6, "F1": (2 / 3 + 4 / 5) / 2}
    )
    assert published["F1"] == pytest.approx(corrected["F1"] / 2)
    assert metrics.top_accuracy(np.array([[1, 0, 2], [2, 1, 0]]), np.array([0, 0]), 2) == 0.5


def test_several_labels_by_hand() -> None:
    predicted, truth = np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]])
    found = metrics.multi_label(predicted, truth)
    assert found == pytest.approx({"accuracy": 0.5, "precision": 2 / 3, "recall": 1, "F1": 0.8})
    nothing = metrics.multi_label(np.zeros((2, 2)), np.zeros((2, 2)))
    assert nothing["F1"] == 0


def test_average_precision_by_hand() -> None:
    """Positives at ranks 1 and 3 of the first class; tied scores of the second are one threshold."""
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.1, 0.5]])
    labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    expected = ((1 / 1 + 2 / 3) / 2 + 1 / 4) / 2
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(expected)
    assert math.isnan(metrics.mean_average_precision(scores, np.zeros((4, 2))))


def test_the_best_epoch() -> None:
    scores = {"mIoU": 40.0, "IoU": [60.0, 20.0], "MSE": 3.0}
    assert metrics.selection_value(scores, "mIoU", 2) == 40
    assert metrics.selection_value(scores, "IoU", 1) == 20
    assert metrics.selection_value(scores, "IoU", 2) == 40
    assert metrics.selection_value({"IoU": [60.0, None]}, "IoU", 2) == 60
    assert metrics.is_better(1, None, "mIoU")
    assert not metrics.is_better(1, 1, "mIoU")
    assert metrics.is_better(1, 2, "MSE")
    assert not metrics.is_better(math.nan, None, "mIoU")
    with pytest.raises(ValueError, match="'published' or 'corrected'"):
        metrics.segmentation(MATRIX, "official")
