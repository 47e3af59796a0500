"""What can be read from maps of frozen features without training anything: in closed form, or from neighbours.

Shape letters: N tokens or places, D width, C classes, h, w tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ramen_jax.evaluation.pangaea import metrics
from ramen_jax.evaluation.pangaea.decoders.neighbours import SINGLE_LABEL_NEIGHBOURS, embed, vote

RIDGE = 1e-2  # of the mean square of a feature, where nothing is chosen
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 3  # groups of places that are left out in turn to choose a penalty


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over samples that linear regression follows from; those of several groups of samples add up."""

    count: int
    x_D: np.ndarray
    y_C: np.ndarray
    xx_DxD: np.ndarray
    xy_DxC: np.ndarray

    @classmethod
    def of(cls, x_NxD: np.ndarray, y_NxC: np.ndarray) -> Moments:
        """Of features and answers, summed in float64."""
        x, y = np.asarray(x_NxD, np.float64), np.asarray(y_NxC, np.float64)
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[Any, ...]:
        return self.count, self.x_D, self.y_C, self.xx_DxD, self.xy_DxC

    @property
    def mean_D(self) -> np.ndarray:
        return self.x_D / self.count

    def solved(self, penalty: float = RIDGE) -> Ridge:
        """The ridge regression of standardised features; the bias bears no penalty."""
        mean_D, mean_C = self.mean_D, self.y_C / self.count
        covariance_DxD = self.xx_DxD / self.count - np.outer(mean_D, mean_D)
        spread_D = np.sqrt(np.maximum(np.diag(covariance_DxD), 0)) + 1e-6
        correlation_DxD = covariance_DxD / np.outer(spread_D, spread_D)
        slope_DxC = (self.xy_DxC / self.count - np.outer(mean_D, mean_C)) / spread_D[:, None]
        weight_DxC = (
            np.linalg.solve(correlation_DxD + penalty * np.eye(len(mean_D)), slope_DxC) / spread_D[:, None]
        )
        return Ridge(weight_DxC, mean_C - mean_D @ weight_DxC)


class Ridge(NamedTuple):
    """A solved regression."""

    weight_DxC: np.ndarray
    bias_C: np.ndarray

    def scores(self, x_NxD: np.ndarray) -> np.ndarray:
        """[N, C] float64."""
        return np.asarray(x_NxD, np.float64) @ self.weight_DxC + self.bias_C


class Linear:
    """A ridge regression on one-hot labels: standardised features and a constant -> a score per class.

    Args:
        maps: per place [h, w, D].
        labels: per place [h, w], -1 unknown.
        classes: how many there are.
        penalties: of the mean square of a feature. Of several, the one that names most tokens of places right that a
            fit leaves out in turn: features that are alike carry what tells classes apart in small differences, and
            how small differs from one kind of input to another.
    """

    def __init__(
        self,
        maps: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        classes: int,
        penalties: Sequence[float] = (RIDGE,),
    ) -> None:
        tokens = [known_tokens([one], [label]) for one, label in zip(maps, labels, strict=True)]
        self.classes = classes
        parts = [_joined(tokens[fold::FOLDS]) for fold in range(min(FOLDS, len(tokens)))]
        moments = [Moments.of(features, np.eye(classes)[known]) for features, known in parts]
        whole = functools.reduce(operator.add, moments)
        right = np.zeros(len(penalties))
        if len(penalties) > 1 and len(parts) > 1:
            for (features, known), own in zip(parts, moments, strict=True):
                for number, penalty in enumerate(penalties):
                    answer = (whole - own).solved(penalty).scores(features)
                    right[number] += np.count_nonzero(answer.argmax(1) == known)
        self.penalty = penalties[int(right.argmax())]
        self.mean_D, self.ridge = whole.mean_D, whole.solved(self.penalty)

    def scores(self, maps: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
        """`accuracy` and `mIoU`, percent, of all known tokens of these places."""
        asked_NxD, truth_N = known_tokens(maps, labels)
        predicted_N = self.ridge.scores(asked_NxD).argmax(1)
        matrix_CxC = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(matrix_CxC, (truth_N, predicted_N), 1)
        found = metrics.segmentation(matrix_CxC, metrics.CORRECTED)
        return {"accuracy": found["Acc"], "mIoU": found["mIoU"]}


def _joined(tokens: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of several places, end to end."""
    features, known = zip(*tokens, strict=True)
    return np.concatenate(features), np.concatenate(known)


def linear_readout(
    maps: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    asked: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    classes: int,
) -> dict[str, float]:
    """`accuracy` and `mIoU` (percent) of tokens of `asked`, by a `Linear` fitted on `maps`."""
    return Linear(maps, labels, classes).scores(asked, truth)


def knn(
    maps: Sequence[np.ndarray], kinds: Sequence[int], asked: Sequence[np.ndarray], truth: Sequence[int]
) -> float:
    """Percent of places whose kind the neighbours name."""
    bank, queries = (
        jnp.concatenate([embed([jnp.asarray(one)[None]]) for one in many]) for many in (maps, asked)
    )
    marked = np.eye(max(*kinds, *truth) + 1, dtype=np.int32)[np.asarray(kinds)]
    votes = vote(queries, bank, jnp.asarray(marked), neighbours=SINGLE_LABEL_NEIGHBOURS)
    return float(100 * np.mean(np.asarray(votes).argmax(1) == np.asarray(truth)))


def position_share(maps: Sequence[np.ndarray], asked: Sequence[np.ndarray]) -> float:
    """Share of the variance of `asked` that the place of a token in its grid tells: 0 where it tells nothing.

    A linear map from every grid cell's indicator, fitted on `maps`: its answer is the mean feature of the cell. On
    other places it explains less than nothing where features do not depend on the cell, but for chance.
    """
    seen_PxhxwxD, other_PxhxwxD = (np.stack(many).astype(np.float64) for many in (maps, asked))
    mean_D, spread_D = seen_PxhxwxD.mean((0, 1, 2)), seen_PxhxwxD.std((0, 1, 2)) + 1e-6
    told_hxwxD = (seen_PxhxwxD.mean(0) - mean_D) / spread_D
    wanted_PxhxwxD = (other_PxhxwxD - mean_D) / spread_D
    centre_D = wanted_PxhxwxD.mean((0, 1, 2))
    left = np.square(wanted_PxhxwxD - centre_D - told_hxwxD[None]).sum()
    return float(max(0.0, 1 - left / np.square(wanted_PxhxwxD - centre_D).sum()))


def known_tokens(maps: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] float64 and labels [N] of all known tokens."""
    features = np.concatenate([one.reshape(-1, one.shape[-1]) for one in maps]).astype(np.float64)
    known = np.concatenate([label.ravel() for label in labels])
    return features[known >= 0], known[known >= 0]
