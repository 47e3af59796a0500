"""What stands in a decoder's place without any training: ridge regression and nearest neighbours on a task's maps.

    readout = build("ridge", task.family, len(task.classes), task.ignore_index)
    readout.learn(levels, targets)                  # as often as there are training places
    logits = readout.decode(state, levels, size)    # as a trained decoder's

`ridge` is linear regression on one-hot labels, `knn` the vote of the nearest neighbours by cosine similarity. In a map
every token of the last level is a sample, with the label of the pixel at its centre; a place that has one label is the
mean of all its tokens and levels.

Shape letters: B places, T dates, N samples, h, w tokens, D width, C classes (1 for a regression).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.evaluation.pangaea.decoders.layers import Size, resize
from ramen_jax.evaluation.pangaea.decoders.linear import pooled
from ramen_jax.evaluation.pangaea.decoders.neighbours import (
    MULTI_LABEL_NEIGHBOURS,
    SINGLE_LABEL_NEIGHBOURS,
    positives,
    unit_vectors,
    vote,
)
from ramen_jax.evaluation.readout import Moments, Ridge

NAMES = ("knn", "ridge")
PLACES = ("classification", "multi_label")  # families with a label per place
MOST_NEIGHBOURS = 20_000  # samples in a bank


class Regression:
    """Linear regression with a penalty: its samples are seen once and not kept."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._ridge: Ridge | None = None

    def add(self, x_NxD: np.ndarray, y_NxC: np.ndarray) -> None:
        found = Moments.of(x_NxD, y_NxC)
        self._moments = found if self._moments is None else self._moments + found
        self._ridge = None

    def scores(self, x_NxD: np.ndarray) -> np.ndarray:
        """[N, C] float32."""
        if self._ridge is None:
            assert self._moments is not None, "asked before anything was learnt"
            self._ridge = self._moments.solved()
        return self._ridge.scores(x_NxD).astype(np.float32)


class Neighbours:
    """A bank of unit vectors and their labels. `every`: one sample in so many is kept."""

    def __init__(self, neighbours: int, every: int = 1) -> None:
        self.neighbours, self.every = neighbours, every
        self._seen = 0
        self._bank: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, x_NxD: np.ndarray, y_NxC: np.ndarray) -> None:
        kept = (np.arange(len(x_NxD)) + self._seen) % self.every == 0
        self._seen += len(x_NxD)
        self._bank.append(np.asarray(unit_vectors(jnp.asarray(x_NxD[kept]))))
        self._labels.append(np.asarray(y_NxC[kept], np.float32))

    def scores(self, x_NxD: np.ndarray) -> np.ndarray:
        """[N, C] float32."""
        self._bank, self._labels = [np.concatenate(self._bank)], [np.concatenate(self._labels)]
        bank, labels = jnp.asarray(self._bank[0]), jnp.asarray(self._labels[0])
        return np.asarray(vote(unit_vectors(jnp.asarray(x_NxD)), bank, labels, neighbours=self.neighbours))


class Readout:
    """One of them behind the door of a decoder; made by `build`."""

    def __init__(
        self,
        family: str,
        classes: int,
        ignore_index: int,
        method: Regression | Neighbours,
        compare: Callable[[Any], Any] | None,
    ) -> None:
        self.family, self.classes, self.ignore_index = family, classes, ignore_index
        self.method, self.compare = method, compare

    def learn(self, levels: Sequence[np.ndarray], targets_B: np.ndarray) -> None:
        """Levels [B, h, w, D_i] of places, or [B, T, h, w, D_i] to be compared, with their targets as in `Example`."""
        x_NxD = self._samples(levels)
        labels_N = targets_B
        if self.family not in PLACES:
            labels_N = at_centres(targets_B, levels[-1].shape[-3:-1]).ravel()
        if self.family in ("regression", "multi_label"):
            self.method.add(x_NxD, labels_N.reshape(len(x_NxD), -1))
            return
        known_N = labels_N != self.ignore_index
        self.method.add(x_NxD[known_N], np.eye(self.classes, dtype=np.float32)[labels_N[known_N]])

    def decode(self, state: Any, levels: Sequence[np.ndarray], size: Size) -> jax.Array:
        """Logits [B, H, W, C], interpolated from the tokens, or [B, C]."""
        del state
        scores_NxC = self.method.scores(self._samples(levels))
        if self.family == "multi_label":  # above 0 means yes
            several = isinstance(self.method, Neighbours)
            return (positives(jnp.asarray(scores_NxC)) if several else jnp.asarray(scores_NxC)) - 0.5
        if self.family in PLACES:
            return jnp.asarray(scores_NxC)
        batch, grid = len(levels[-1]), levels[-1].shape[-3:-1]
        return resize(jnp.asarray(scores_NxC.reshape(batch, *grid, -1)), size)

    def _samples(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        if self.compare is not None:
            levels = [np.asarray(self.compare(level)) for level in levels]
        if self.family in PLACES:
            return np.asarray(pooled([jnp.asarray(level) for level in levels]))
        return levels[-1].reshape(-1, levels[-1].shape[-1])


def build(
    name: str,
    family: str,
    classes: int,
    ignore_index: int,
    samples: int,
    compare: Callable[[Any], Any] | None = None,
) -> Readout:
    """The readout of that name, one of NAMES.

    Args:
        samples: how many it will learn from, about.
        compare: of the two dates of a level; None: levels have no dates.
    """
    neighbours = MULTI_LABEL_NEIGHBOURS if family == "multi_label" else SINGLE_LABEL_NEIGHBOURS
    every = max(1, -(-samples // MOST_NEIGHBOURS))
    method = Regression() if name == "ridge" else Neighbours(neighbours, every)
    return Readout(family, classes, ignore_index, method, compare)


def at_centres(targets: np.ndarray, grid: Size) -> np.ndarray:
    """[..., H, W] -> [..., h, w]: what lies under the pixel at the centre of each token."""
    centres = [
        ((np.arange(tokens) + 0.5) * side / tokens).astype(int)
        for tokens, side in zip(grid, targets.shape[-2:], strict=True)
    ]
    return targets[..., centres[0][:, None], centres[1]]
