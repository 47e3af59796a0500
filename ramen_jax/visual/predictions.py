"""Pictures of an evaluation: predicted maps beside the truth, the confusion matrix, accuracy against cost.

Shape letters: C bands or classes, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ramen_jax.sensors import Sensor
from ramen_jax.visual import display, figures

WRONG, RIGHT, UNKNOWN = (0.84, 0.15, 0.16), (0.90, 0.93, 0.90), (0.6, 0.6, 0.62)


class Predicted(NamedTuple):
    """One place. `image`: physical values [C, H, W]; `truth`, `prediction`: [H, W], classes or values."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def maps(
    places: Sequence[Predicted],
    sensor: Sensor,
    classes: Sequence[str],
    palette: np.ndarray,
    ignore_index: int,
    title: str,
    path: Path,
) -> None:
    """A row per place: image, truth, prediction, errors. Without classes the maps are values of a regression."""
    figure, axes = figures.pyplot().subplots(
        len(places), 4, figsize=(11.0, 2.9 * len(places) + 0.6), squeeze=False
    )
    for line, place in zip(axes, places, strict=True):
        look = display.looks(sensor, place.image)[0]
        shown = [look.picture(place.image)]
        limits: list[tuple[float, float] | tuple[None, None]] = [(None, None)] * 4
        if classes:
            known = place.truth != ignore_index
            colours = palette / 255
            truth = np.where(known[..., None], colours[np.where(known, place.truth, 0)], UNKNOWN)
            wrong = np.where((place.truth == place.prediction)[..., None], RIGHT, WRONG)
            shown += [truth, colours[place.prediction], np.where(known[..., None], wrong, UNKNOWN)]
        else:
            shown += [place.truth, place.prediction, np.abs(place.prediction - place.truth)]
            # One scale for all three: the truth's.
            low, high = float(place.truth.min()), float(place.truth.max())
            limits[1:] = [(low, high), (low, high), (0.0, high - low)]
        heads = (f"{place.title}\n{look.title.splitlines()[0]}", "truth", "prediction", "errors")
        for axis, picture, head, (low_end, high_end) in zip(line, shown, heads, limits, strict=True):
            drawn = axis.imshow(picture, interpolation="nearest", vmin=low_end, vmax=high_end)
            if picture.ndim == 2:
                figure.colorbar(drawn, ax=axis, fraction=0.046)
            axis.set_title(head)
            axis.set_axis_off()
    if classes:
        from matplotlib.patches import Patch

        handles = [Patch(color=c / 255, label=name) for c, name in zip(palette, classes, strict=True)]
        handles += [Patch(color=WRONG, label="error"), Patch(color=UNKNOWN, label="no truth")]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), fontsize=8)
    figure.suptitle(title)
    figures.save(figure, path)


def confusion(matrix_CxC: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Counts of pixels, each row (truth) as shares; a class without truth has an empty row."""
    counts = np.asarray(matrix_CxC, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.2, 0.42 * len(classes) + 1.8)
    figure, axes = figures.pyplot().subplots(1, 1, figsize=(side + 1.2, side), squeeze=False)
    axis = axes[0][0]
    drawn = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=90, fontsize=7)
    axis.set_yticks(ticks, classes, fontsize=7)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    for row in np.flatnonzero(counts.sum(axis=1)):
        for column in ticks:
            dark = shares[row, column] > 0.5
            text = f"{100 * shares[row, column]:.0f}"
            axis.text(
                column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    figure.colorbar(drawn, ax=axis, label="share of the truth")
    axis.set_title(title.replace(", ", "\n", 1), fontsize=10)  # a matrix of two classes is narrow
    figures.save(figure, path)


def curve(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], metric: str, title: str, path: Path
) -> None:
    """Score against cost. `lines`: encoder -> (target GSD in metres, FLOPs of encoding one place, score)."""
    figure, axes = figures.pyplot().subplots(1, 1, figsize=(6.0, 4.2), squeeze=False)
    axis = axes[0][0]
    for name, points in lines.items():
        ordered = sorted(points, key=lambda point: point[1])
        axis.plot([p[1] / 1e9 for p in ordered], [p[2] for p in ordered], "o-", label=name)
        for gsd, flops, score in ordered:
            axis.annotate(f"{gsd:g} m", (flops / 1e9, score), (4, 4), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.margins(0.12)  # room for what is written at the outermost points
    costs = sorted({point[1] / 1e9 for points in lines.values() for point in points})
    axis.set_xticks(costs, [f"{cost:.3g}" for cost in costs])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("encoder, GFLOP per place")
    axis.set_ylabel(metric)
    axis.set_title(title)
    axis.legend()
    figures.save(figure, path)
