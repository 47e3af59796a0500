"""What is handed over at the end: results.json, table.md beside the published rows, and pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ramen_jax.console import UserError
from ramen_jax.evaluation.fitting import read_facts
from ramen_jax.evaluation.pangaea.tasks import Task
from ramen_jax.visual import predictions

# Test mIoU with all labels of the U-Net trained from scratch, as quoted for arXiv 2412.04204: the paper's means of the
# nine tasks (57.58) and of those without Five-Billion-Pixels (57.22) follow from it, its cells were not compared with
# the paper. PASTIS and Five-Billion-Pixels are means with the void class in them.
UNET = {
    "hlsburnscars": 84.51,
    "mados": 54.79,
    "pastis": 31.60,
    "sen1floods11": 91.42,
    "fivebillionpixels": 60.47,
    "dynamicearthnet": 39.46,
    "croptypemapping": 47.57,
    "spacenet7": 62.09,
    "ai4smallfarms": 46.34,
}
PERCENT_OR_UNITS = ("mIoU", "RMSE")  # the other metrics that are shown are shares from 0 to 1


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per task, encoder, target GSD and share of labels; mean and spread over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        key = (result["task"], result["encoder"], result["decoder"], result["target_gsd"], result["labels"])
        groups[key].append(result)
    lines = [
        "| task | encoder | decoder | target GSD | labels | metric | published definition | corrected definition | "
        "seeds | encoder GFLOP | decoder GFLOP |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, encoder, decoder, gsd, share), members in groups.items():
        metric, cost = members[0]["metric"], members[0]["flops"]
        grain = "" if gsd is None else f"{gsd:g} m"
        shown = [
            _spread([m["scores"][name][metric] for m in members], metric)
            for name in ("published", "corrected")
        ]
        lines.append(
            f"| {task} | {encoder} | {decoder} | {grain} | {100 * share:g} % | {metric} | {shown[0]} | {shown[1]} | "
            f"{len(members)} | {cost['encoder'] / 1e9:,.3g} | {cost['decoder'] / 1e9:,.3g} |"
        )
    for task, (metric, expected) in {r["task"]: (r["metric"], r["expected"]) for r in results}.items():
        quoted = {"RAMEN (published)": expected, "UNet (quoted, unchecked)": UNET.get(task)}
        lines += [
            f"| {task} | {name} | | | 100 % | {metric} | {score:.2f} | | | | |"
            for name, score in quoted.items()
            if score is not None
        ]
    protocols = sorted({result["protocol"]["name"] for result in results})
    return "\n".join([*lines, "", f"Protocol: {', '.join(protocols)}."])


def _spread(values: Sequence[float], metric: str) -> str:
    """`63.20`, a share as `0.6320`; with several seeds mean and standard deviation (of the sample)."""
    digits = 2 if metric in PERCENT_OR_UNITS else 4
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def write(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """results.json, table.md, and the curve where there are several target GSDs. UserError where the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("results.json", json.dumps(results, indent=1)), ("table.md", table(results))):
            partial = folder / f".{name}"
            partial.write_text(text + "\n")
            partial.replace(folder / name)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); runs that are complete are kept"
        ) from error
    for task in dict.fromkeys(result["task"] for result in results):
        lines: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        metric = next(result["metric"] for result in results if result["task"] == task)
        for result in results:
            if result["task"] == task and result["flops"]["encoder"]:
                score = result["scores"][result["protocol"]["metrics"]][result["metric"]]
                lines[result["encoder"]][result["target_gsd"]].append((result["flops"]["encoder"], score))
        points = {
            name: [(gsd, found[0][0], float(np.mean([s for _, s in found]))) for gsd, found in by_gsd.items()]
            for name, by_gsd in lines.items()
        }
        if any(len(line) > 1 for line in points.values()):
            predictions.curve(points, metric, f"{task}: accuracy against cost", folder / f"{task}_curve.png")


def seen_by(encoder: str, target_gsd: float | None) -> str:
    """An encoder and what it sees, in words."""
    return encoder if target_gsd is None else f"{encoder} at {target_gsd:g} m per token"


def draw(task: Task, result: dict[str, Any], folder: Path) -> None:
    """Pictures of predictions and the confusion matrix of one run."""
    title = f"{task.name}, {seen_by(result['encoder'], result['target_gsd'])}"
    places, modality = [], task.modalities[0]
    for path in sorted(folder.glob("example_*.safetensors")):
        arrays, facts = load_file(path), read_facts(path)
        modality = task.modality(facts["modality"])
        places.append(
            predictions.Predicted(facts["id"], arrays["image/0"], arrays["truth/0"], arrays["prediction/0"])
        )
    classes = () if task.family == "regression" else task.classes
    if places:
        path = folder / "predictions.png"
        predictions.maps(places, modality.sensor, classes, task.palette, task.ignore_index, title, path)
    if result.get("confusion"):
        predictions.confusion(np.array(result["confusion"]), task.classes, title, folder / "confusion.png")
