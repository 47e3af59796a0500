"""What can be read from maps of frozen features without training anything: in closed form, or from neighbours.

Shape letters: N tokens or places, D width, C classes, h, w tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ramen_jax.evaluation.pangaea import metrics
from ramen_jax.evaluation.pangaea.decoders.neighbours import SINGLE_LABEL_NEIGHBOURS, embed, vote

RIDGE = 1e-2  # of the mean square of a feature, where nothing is chosen
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 3  # groups of places that are left out in turn to choose a penalty


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
        known_NxD, _ = _joined(tokens)
        self.classes = classes
        self.mean, self.spread = known_NxD.mean(0), known_NxD.std(0) + 1e-6
        folds = [tokens[fold::FOLDS] for fold in range(min(FOLDS, len(tokens)))]
        parts = [_joined(fold) for fold in folds]
        sums = [self._sums(features, known) for features, known in parts]
        whole = _Sums(*(sum(each) for each in zip(*sums, strict=True)))
        right = np.zeros(len(penalties))
        if len(penalties) > 1 and len(parts) > 1:
            for (features, known), own in zip(parts, sums, strict=True):
                others = _Sums(*(total - part for total, part in zip(whole, own, strict=True)))
                for number, penalty in enumerate(penalties):
                    answer = self._with_constant(features) @ _solve(others, penalty)
                    right[number] += np.count_nonzero(answer.argmax(1) == known)
        self.penalty = penalties[int(right.argmax())]
        self.weights_DxC = _solve(whole, self.penalty)

    def scores(self, maps: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
        """`accuracy` and `mIoU`, percent, of all known tokens of these places."""
        asked_NxD, truth_N = known_tokens(maps, labels)
        predicted_N = (self._with_constant(asked_NxD) @ self.weights_DxC).argmax(1)
        matrix_CxC = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(matrix_CxC, (truth_N, predicted_N), 1)
        found = metrics.segmentation(matrix_CxC, metrics.CORRECTED)
        return {"accuracy": found["Acc"], "mIoU": found["mIoU"]}

    def _with_constant(self, features_NxD: np.ndarray) -> np.ndarray:
        standard_NxD = (features_NxD - self.mean) / self.spread
        return np.concatenate([standard_NxD, np.ones((len(standard_NxD), 1))], axis=1)

    def _sums(self, features_NxD: np.ndarray, known_N: np.ndarray) -> _Sums:
        a_NxD = self._with_constant(features_NxD)
        return _Sums(a_NxD.T @ a_NxD, a_NxD.T @ np.eye(self.classes)[known_N], len(a_NxD))


class _Sums(NamedTuple):
    """Products of the features with each other and with the one-hot labels, and the number of tokens."""

    gram_DxD: Any
    products_DxC: Any
    tokens: Any


def _solve(sums: _Sums, penalty: float) -> np.ndarray:
    return np.linalg.solve(
        sums.gram_DxD + penalty * sums.tokens * np.eye(len(sums.gram_DxD)), sums.products_DxC
    )


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
