"""A table of steps, each measured in a process of its own, in turn with another command's where one is named.

See `ramen_jax.bench`. This module imports no JAX: only the processes that measure do.
"""

from __future__ import annotations

import datetime
import json
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramen_jax import console
from ramen_jax.benchmarks.turns import pairs, stepping
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.visual import figures

ASKED = ("config", "corpus", "target_gsd", "batch", "dates", "modalities", "precision")
WRITTEN = ("results.json", "table.md", "speed.png")
HEADINGS = (
    *("config", "corpus", "GSD", "batch", "dates", "modalities", "precision"),
    *("compile s", "step s", "samples/s", "tokens/s", "GFLOP/s", "of matmul", "peak GiB", "packing"),
)


def run(arguments: Namespace, cells: Sequence[Namespace], overrides: Sequence[str]) -> int:
    """Measures all cells, prints the table, writes the folder. UserError where nothing could be measured."""
    if arguments.steps < 1:
        raise UserError("--steps must be at least 1", USAGE)
    folder = arguments.output
    if folder is not None:
        _claim(folder)
    results = []
    with console.progress(len(cells), "measuring", "cells") as bar:
        for cell in cells:
            asked = {name: getattr(cell, name) for name in ASKED}
            results.append({**asked, **_measured(cell, overrides)})
            bar.note(_told(results[-1]))
            bar.advance()
            if folder is not None:
                (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
                (folder / "table.md").write_text(table(results, arguments.against) + "\n")
    measured = [result for result in results if "failed" not in result]
    if not measured:
        raise UserError(f"nothing was measured: {results[0]['failed']}", DATA)
    print(table(results, arguments.against))
    if folder is not None:
        print(f"  {folder / 'results.json'}\n  {folder / 'table.md'}")
        figures.speed(measured, folder / "speed.png")
    return 0


def _measured(cell: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """The figures of a cell, or why it has none."""
    try:
        with stepping(command_of(cell, overrides)) as ours:
            if not cell.against:
                status = ours.finish()
                return ours.last if "machine" in ours.last else {"failed": f"exit status {status}"}
            with stepping(shlex.split(filled(cell.against, cell))) as theirs:
                taken = pairs(ours, theirs, cell.steps)
                peak = theirs.end()
            ours.finish()
            return {**ours.last, **compared(taken), "other_peak_bytes": peak}
    except UserError as error:
        return {"failed": str(error)}


def command_of(cell: Namespace, overrides: Sequence[str]) -> list[str]:
    """The command that measures one cell by itself and speaks JSON."""
    options = [part for name in ASKED for part in (f"--{name.replace('_', '-')}", str(getattr(cell, name)))]
    return [
        *(sys.executable, "-m", "ramen_jax.bench", "--json", "--steps", str(cell.steps)),
        *options,
        *overrides,
    ]


def filled(command: str, cell: Namespace) -> str:
    """The other command with the cell's own values."""
    for name in ASKED:
        command = command.replace("{" + name + "}", f"{getattr(cell, name)}")
    return command


def compared(taken: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How many times longer the other command's step takes, pair by pair."""
    ratios = sorted(theirs / ours for ours, theirs in taken)
    mine = [ours for ours, _ in taken]  # the process's own clock also ran while it was held still
    return {
        "pairs": [[round(ours, 6), round(theirs, 6)] for ours, theirs in taken],
        "other_seconds": statistics.median(theirs for _, theirs in taken),
        "step_seconds": statistics.median(mine),
        "fastest_seconds": min(mine),
        "slowest_seconds": max(mine),
        "ratio": statistics.median(ratios),
        "smallest_ratio": ratios[0],
        "largest_ratio": ratios[-1],
    }


def table(results: Sequence[dict[str, Any]], against: str) -> str:
    """All cells in markdown, under the machine they were measured on."""
    machines = sorted({result["machine"] for result in results if "machine" in result})
    headings = [*HEADINGS, *(["other s", "ratio", "other GiB"] if against else [])]
    lines = [
        f"{'; '.join(machines) or 'nothing was measured'}; {datetime.date.today().isoformat()}",
        *([f"against: `{against}`"] if against else []),
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(_row(result, against)) + " |" for result in results),
    ]
    ratios = [result["ratio"] for result in results if "ratio" in result]
    if ratios:
        lines += ["", f"ratio, geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f}"]
    return "\n".join(lines)


def _row(result: dict[str, Any], against: str) -> list[str]:
    asked = [
        Path(result["config"]).stem,
        result["corpus"],
        f"{result['target_gsd']:g} m",
        str(result["batch"]),
        str(result["dates"] or "all"),
        result["modalities"] or "all",
        result["precision"] or "its own",
    ]
    if "failed" in result:
        return [*asked, result["failed"].replace("|", "/")]
    seconds = result["step_seconds"]
    rate = result["flops"] / seconds
    found = [
        f"{result['compile_seconds']:.1f}",
        f"{seconds:.3f} ({result['fastest_seconds']:.3f}-{result['slowest_seconds']:.3f})",
        f"{result['batch'] / seconds:.3g}",
        f"{result['tokens'] / seconds:,.0f}",
        f"{rate / 1e9:,.0f}",
        f"{rate / result['matmul_flops']:.0%}",
        f"{result['peak_bytes'] / 2**30:.2f}",
        f"{result['packing_seconds'] / seconds:.1%}",
    ]
    if against:
        found += [
            f"{result['other_seconds']:.3f}",
            f"{result['ratio']:.2f} ({result['smallest_ratio']:.2f}-{result['largest_ratio']:.2f})",
            f"{result['other_peak_bytes'] / 2**30:.2f}",
        ]
    return asked + found


def _told(result: dict[str, Any]) -> str:
    what = f"{Path(result['config']).stem}, {result['corpus']}, {result['target_gsd']:g} m, batch {result['batch']}"
    if "failed" in result:
        return f"{what}: not measured, {result['failed']}"
    ratio = f", the other {result['ratio']:.2f} times that" if "ratio" in result else ""
    return f"{what}: {result['step_seconds']:.3f} s a step{ratio}"


def _claim(folder: Path) -> None:
    """The folder exists, and holds nothing but an earlier table. UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder for the table", DATA)
    if folder.is_dir():
        foreign = [path.name for path in folder.iterdir() if path.name not in WRITTEN]
        if foreign:
            raise UserError(
                f"{folder}: holds {foreign[0]}, which is no table of ours; name another folder", DATA
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})", DATA) from None
