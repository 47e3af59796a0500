"""The learning suite for people: tables, a file of all numbers, and the curves over resolution and labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.evaluation.learning import Result
from ramen_jax.visual import curves

TITLES = {"raw": "raw bands", "untrained": "untrained encoder"}


def table(results: Sequence[Result]) -> str:
    """Markdown: what a linear map reads from each input, mean and spread over the seeds; then the other measures."""
    encoders = list(dict.fromkeys(result["encoder"] for result in results if result["measure"] == "linear"))
    single = [name for name in encoders if not name.startswith("raw and ")]
    seeds = len({result["seed"] for result in results})
    lines = [
        f"mIoU of a linear map from features to land cover, on places that nobody saw; {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, mean ± spread",
        "",
        _row(["target GSD", "places fitted", *map(_title, encoders)]),
        _row(["---"] * (2 + len(encoders))),
    ]
    settings = _settings(results, "linear", ("target_gsd", "places"))
    for gsd, places in settings:
        cells = [
            _spread(_of(results, "linear", name, "mIoU", target_gsd=gsd, places=places)) for name in encoders
        ]
        lines.append(_row([f"{gsd:g} m", str(places), *cells]))
    others: list[tuple[str, str, str, dict[str, object]]] = [
        *(
            (f"landscape named by neighbours, {gsd:g} m", "neighbours", "accuracy", {"target_gsd": gsd})
            for (gsd,) in _settings(results, "neighbours", ("target_gsd",))
        ),
        *(
            (f"mIoU where {sensor} is missing", "missing", "mIoU", {"without": sensor})
            for (sensor,) in _settings(results, "missing", ("without",))
        ),
        ("cosine of one ground in two tilings, lowest 1 %", "tilings", "lowest", {}),
        ("variance that the place in the grid tells", "position", "share", {}),
    ]
    lines += ["", _row(["measure", *map(_title, single)]), _row(["---"] * (1 + len(single)))]
    for title, measure, number, where in others:
        cells = [_spread(_of(results, measure, name, number, **where)) for name in single]
        if any(cells):
            lines.append(_row([title, *cells]))
    return "\n".join(lines)


def write(results: Sequence[Result], folder: Path) -> None:
    """results.json, table.md and curves.png. UserError where they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("results.json", json.dumps(results, indent=1)), ("table.md", table(results))):
            partial = folder / f".{name}"
            partial.write_text(text + "\n")
            partial.replace(folder / name)
        panels = {
            "target GSD, metres per token": _lines(results, "target_gsd"),
            "places that the map was fitted on": _lines(results, "places"),
        }
        shown = {
            axis: lines for axis, lines in panels.items() if any(len(line) > 1 for line in lines.values())
        }
        if shown:
            curves.with_spread(
                shown, "mIoU of a linear map", "Land cover of unseen places", folder / "curves.png"
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from error


def _lines(results: Sequence[Result], axis: str) -> dict[str, list[tuple[float, float, float]]]:
    """Encoder -> (x, mean, spread), the other setting being its most usual value."""
    linear = [result for result in results if result["measure"] == "linear"]
    other = "places" if axis == "target_gsd" else "target_gsd"
    kept = (
        max(result["places"] for result in linear)
        if other == "places"
        else max((result["target_gsd"] for result in linear), key=[r["target_gsd"] for r in linear].count)
    )
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for name in dict.fromkeys(result["encoder"] for result in linear):
        for (value,) in _settings(linear, "linear", (axis,)):
            found = _of(linear, "linear", name, "mIoU", **{axis: value, other: kept})
            if found:
                spread = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
                lines.setdefault(_title(name), []).append((value, float(np.mean(found)), spread))
    return lines


def _title(encoder: str) -> str:
    if encoder in TITLES:
        return TITLES[encoder]
    return (
        f"raw bands and {_title(encoder.removeprefix('raw and '))}"
        if encoder.startswith("raw and ")
        else f"pretrained ({encoder})"
    )


def _settings(results: Iterable[Result], measure: str, keys: Sequence[str]) -> list[tuple]:
    """The values of these keys that a measure was taken at, numbers ascending."""
    found = dict.fromkeys(tuple(r[key] for key in keys) for r in results if r["measure"] == measure)
    return sorted(found) if keys != ("without",) else list(found)


def _of(results: Iterable[Result], measure: str, encoder: str, number: str, **where: object) -> list[float]:
    return [
        result[number]
        for result in results
        if result["measure"] == measure
        and result["encoder"] == encoder
        and all(result[key] == value for key, value in where.items())
    ]


def _spread(values: Sequence[float]) -> str:
    """`0.411`, or with several seeds mean and standard deviation (of the sample)."""
    if not values:
        return ""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
