"""Curves with their spread. Numbers in, PNG files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ramen_jax.visual import figures


def with_spread(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    score: str,
    title: str,
    path: Path,
) -> None:
    """A panel per x axis. `panels`: name of the axis -> name of the line -> (x, mean, spread)."""
    figure, axes = figures.pyplot().subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False, sharey=True
    )
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=True):
        for label, points in lines.items():
            x, mean, spread = zip(*sorted(points), strict=True)
            axis.errorbar(x, mean, yerr=spread, fmt="o-", capsize=3, label=label)
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(score)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(title)
    figures.save(figure, path)
