"""The figures of a training: loss curves, reconstructions, features. Arrays in, PNG files out; no model here.

Shape letters: C bands, H rows, W columns of an image; D features; G grid side.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ramen_jax.sensors import Sensor
from ramen_jax.visual import display

DPI = 130
SMOOTHING = 0.1  # share of the training over which the loss curve is averaged


class Hidden(NamedTuple):
    """One modality of one masked view, as pictures need it: every array [C, H, W] of one date, or [H, W]."""

    original: np.ndarray  # physical units
    reconstruction: np.ndarray  # physical units, see `ramen_jax.pictures.reconstructions`
    target: np.ndarray  # what the loss compares with
    prediction: np.ndarray  # what the decoder said, in units of the target
    hidden: np.ndarray  # bool: the encoder did not see this pixel
    valid: np.ndarray  # bool
    day: int


def loss(lines: list[dict[str, Any]], baselines: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """The loss of every modality of every corpus, each step (pale) and averaged, beside its `baselines` (dotted)."""
    from matplotlib.ticker import LogLocator

    plt = pyplot()
    corpora = sorted({line["corpus"] for line in lines if "corpus" in line})
    figure, grid = plt.subplots(
        1, len(corpora), figsize=(7.2 * len(corpora), 4.4), squeeze=False, sharey=True
    )
    for axes, corpus in zip(grid[0], corpora, strict=True):
        own = [line for line in lines if line.get("corpus") == corpus]
        names = sorted({key for line in own for key in line if key.startswith("loss/")})
        for name in names:
            # A step none of whose views kept the modality has no loss of it (0 is written).
            points = [(line["step"], line[name]) for line in own if line.get(name)]
            if points:
                steps, losses = np.array(points).T
                (curve,) = axes.plot(*_smooth(steps, losses), label=name.removeprefix("loss/"), linewidth=1.8)
                axes.plot(steps, losses, color=curve.get_color(), alpha=0.2, linewidth=0.7)
                guess = baselines[corpus][name.removeprefix("loss/")]
                axes.axhline(guess, color=curve.get_color(), linestyle=":", linewidth=1)
        axes.set(title=corpus, xlabel="step", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, ncols=2, fontsize=8)
    grid[0][0].set_ylabel("mean squared error of hidden pixels")
    figure.suptitle(title)
    note = (
        f"Pale: every step. Bold: mean over {SMOOTHING:.0%} of the steps. Dotted: predicting zero everywhere."
    )
    _note(figure, note, 7.2 * len(corpora))
    save(figure, path)


def reconstructions(
    results: dict[str, Hidden], sensors: dict[str, Sensor], target: str, title: str, path: Path
) -> None:
    """A row per way to show a modality: original, what the encoder saw, reconstruction (and target and prediction)."""
    plt = pyplot()
    per_pixel = target == "per_pixel"
    headings = ["original", "seen by the encoder", "reconstruction"]
    headings += ["target of the loss", "prediction"] if per_pixel else []
    rows = [
        (name, found, look)
        for name, found in results.items()
        for look in display.looks(sensors[name], found.original, found.valid)
    ]
    figure, grid = plt.subplots(
        len(rows), len(headings), figsize=(2.75 * len(headings) + 0.9, 2.5 * len(rows) + 1.3), squeeze=False
    )
    for line, (name, found, look) in zip(grid, rows, strict=True):
        height, width = found.hidden.shape
        extent = (0, width * look.gsd, height * look.gsd, 0)
        original = look.picture(found.original)
        line[0].imshow(original, extent=extent, interpolation="nearest")
        line[1].imshow(display.hide(original, found.hidden), extent=extent, interpolation="nearest")
        line[2].imshow(look.picture(found.reconstruction), extent=extent, interpolation="nearest")
        if per_pixel:
            for axes, values in ((line[3], found.target), (line[4], found.prediction)):
                shown = display.stretch(values, found.target, look.bands)
                axes.imshow(shown, extent=extent, interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        day = "" if look.kind == "relief" else display.day_of_year(found.day)
        label = [name, f"{look.gsd:g} m pixels", *look.title.split("\n"), *([day] if day else [])]
        line[0].set_ylabel("\n".join(label), fontsize=8)
        _metres(line, extent)
        if look.unit:
            _colour_bar(figure, line[2], look)
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=10)
    note = (
        "Grey: hidden from the encoder. Limits of each row: 2nd to 98th percentile of its original (optical: at least"
        " half a standard deviation of the corpus apart)."
        " Distances in metres. The decoder makes one value per band and token, so detail below the token is not there."
    )
    if per_pixel:
        note += (
            " The reference target normalises each pixel across its bands, so the model learns how the bands of a pixel"
            " relate and not how bright it is: the reconstruction borrows mean and contrast of every pixel from the"
            " original. The last two columns borrow nothing; their limits are those of the target, of which two bands"
            " leave only the sign of their difference."
        )
    figure.suptitle(title)
    _note(figure, note, 2.75 * len(headings) + 0.9)
    save(figure, path)


def features(
    scenes: list[tuple[str, np.ndarray]],
    maps: list[tuple[float, np.ndarray]],
    extent: tuple[float, float, float, float],
    title: str,
    path: Path,
) -> None:
    """One scene and its features at several target GSDs, in one basis of principal components."""
    plt = pyplot()
    colours, share = principal_colours([values for _, values in maps])
    count = len(scenes) + len(maps)
    figure, grid = plt.subplots(1, count, figsize=(3.1 * count, 4.2), squeeze=False)
    for axes, (heading, picture) in zip(grid[0], scenes, strict=False):
        axes.imshow(picture, extent=extent, interpolation="nearest")
        axes.set_title(heading, fontsize=9)
    for axes, (gsd, values), colour in zip(grid[0][len(scenes) :], maps, colours, strict=True):
        rows, columns = values.shape[:2]
        covered = (0, columns * gsd, rows * gsd, 0)
        axes.imshow(colour, extent=covered, interpolation="nearest")
        axes.set_title(f"target GSD {gsd:g} m\n{rows} × {columns} tokens", fontsize=9)
        axes.set(xlim=extent[:2], ylim=extent[2:])
    _metres(grid[0], extent)
    figure.suptitle(title)
    note = (
        f"Features of all modalities together (mean of their tokens at each place), {maps[0][1].shape[-1]} channels, "
        f"shown by their first three principal components as red, green and blue ({share:.0%} of the variance). "
        "One basis and one stretch for all target GSDs. Distances in metres."
    )
    _note(figure, note, 3.1 * count)
    save(figure, path)


def detail(lines: list[tuple[float, float, float, float]], places: int, path: Path) -> None:
    """Pixels read right from features against their cost; `lines` of GSD, MFLOP, share, best share possible."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _, cost, right, best = zip(*lines, strict=True)
    axes.plot(cost, best, "--", color="0.6", label="at best: every token its commonest class")
    axes.plot(cost, right, "o-", color="tab:blue", label="read by a linear map from the features")
    for gsd, flops, share, _ in lines:
        axes.annotate(
            f"{gsd:g} m", (flops, share), (0, -13), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set(xscale="log", xlabel="cost of a place (MFLOP)", ylabel="pixels of the right land cover")
    axes.set_ylim(bottom=min(right) - 0.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    figure.suptitle("What a finer target GSD costs, and what it shows")
    note = (
        f"Land cover of {places} rendered places that neither the model nor the map has seen, at the pixels of the "
        "aerial image. Labels at the points: target GSD."
    )
    _note(figure, note, 6.4)
    save(figure, path)


def speed(cells: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a step against its tokens, a line for each model and corpus; hollow: the other command, if any.

    Args:
        cells: figures of `ramen_jax.benchmarks.grid`.
    """
    plt = pyplot()
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        name = (Path(cell["config"]).stem, cell["corpus"], cell["modalities"], cell["precision"])
        lines.setdefault(name, []).append(cell)
    for names, line in lines.items():
        line.sort(key=lambda cell: cell["tokens"])
        tokens = [cell["tokens"] for cell in line]
        (drawn,) = axes.plot(
            tokens, [cell["step_seconds"] for cell in line], "o-", label=", ".join(filter(None, names))
        )
        if "other_seconds" in line[0]:
            other = [cell["other_seconds"] for cell in line]
            axes.plot(tokens, other, "o--", color=drawn.get_color(), markerfacecolor="white")
        for cell in line:
            axes.annotate(
                f"{cell['target_gsd']:g} m",
                (cell["tokens"], cell["step_seconds"]),
                (7, -3),
                textcoords="offset points",
                fontsize=8,
            )
    axes.set(xscale="log", yscale="log", xlabel="decoder tokens of a step", ylabel="seconds of a step")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter("")
    axes.margins(0.12)  # room for what is written beside the outermost points
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize=8)
    figure.suptitle("Time of a training step")
    hollow = " Hollow: the other command." if any("other_seconds" in cell for cell in cells) else ""
    _note(figure, f"{cells[0]['machine']}. Labels at the points: target GSD.{hollow}", 6.4)
    save(figure, path)


def pyplot() -> Any:
    """Matplotlib without a screen, in the style of these figures."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "figure.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.dpi": DPI,
        }
    )
    return plt


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A moving mean over SMOOTHING of the points, placed in the middle of its window."""
    window = max(1, round(len(values) * SMOOTHING))
    kernel = np.full(window, 1 / window)
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def _metres(line: Any, extent: tuple[float, float, float, float]) -> None:
    for place, axes in enumerate(line):
        axes.set_xticks([0, extent[1]], [f"{0:g}", f"{extent[1]:g}"], fontsize=7)
        axes.set_yticks([0, extent[2]], [f"{0:g}", f"{extent[2]:g}"] if place == 0 else ["", ""], fontsize=7)


def _colour_bar(figure: Any, axes: Any, look: display.Look) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(*look.limits[0]), display.colour_map(look.kind))
    bar = figure.colorbar(scale, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(look.unit, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _note(figure: Any, text: str, inches: float) -> None:
    wrapped = textwrap.fill(text, int(inches * 15))
    figure.supxlabel(wrapped, fontsize=7.5, color="0.35")


def save(figure: Any, path: Path) -> None:
    """Written in one move, and said."""
    from matplotlib import pyplot as plt

    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.rename(path)
    plt.close(figure)
    print(f"  {path}", flush=True)


def principal_colours(maps: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The first three principal components of all maps together as colours [G, G, 3], and their share of the variance.

    One basis and one stretch for all maps: the same colour means the same feature everywhere.
    """
    flat = [m.reshape(-1, m.shape[-1]) for m in maps]
    # Every map has the same weight, however many tokens it has.
    weights = np.concatenate([np.full(len(f), 1 / len(f)) for f in flat])
    weights /= weights.sum()
    stacked = np.concatenate(flat).astype(np.float64)
    centred = stacked - weights @ stacked
    variances, axes = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    components = centred @ axes[:, ::-1][:, :3]
    low, high = np.percentile(components, (2, 98), axis=0)
    colours = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    share = float(variances[::-1][:3].sum() / max(variances.sum(), 1e-12))
    ends = np.cumsum([len(f) for f in flat])[:-1]
    return [c.reshape(*m.shape[:2], 3) for c, m in zip(np.split(colours, ends), maps, strict=True)], share
