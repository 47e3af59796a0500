"""What `evaluate` does: every task with every encoder, target GSD, share of labels and seed; then tables, pictures."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ramen_jax import console
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.evaluation import closed_form, learning, learning_report, report
from ramen_jax.evaluation.cache import Cache
from ramen_jax.evaluation.encoders import KINDS, Pretrained, open_encoder
from ramen_jax.evaluation.pangaea import protocol as protocols
from ramen_jax.evaluation.pangaea.tasks import load_task, open_task, shipped
from ramen_jax.evaluation.runs import Run, Settings
from ramen_jax.model import flops

SUITES = ("learning",)


def run(given: argparse.Namespace) -> int:
    """The command. Raises UserError."""
    if given.suite:
        return _suite(given)
    if given.data is None:
        raise UserError("--data is missing: the folder of the original files", USAGE)
    results = evaluate(
        given.config or given.task,
        given.data,
        given.workdir,
        checkpoint=given.checkpoint,
        encoders=_listed("encoder", given.encoder, str),
        protocol=given.protocol,
        target_gsds=_listed("target-gsd", given.target_gsd, float),
        seeds=_listed("seeds", given.seeds, int),
        labels=_listed("labels", given.labels, float) or [1.0],
        dtype=given.dtype,
        cache=given.cache,
        cache_limit=given.cache_limit,
        settings=Settings(
            decoder=given.decoder or None,
            epochs=given.epochs,
            batch_size=given.batch_size,
            replicate=given.replicate,
            crop=given.crop,
            channels=given.channels,
        ),
    )
    print(report.table(results))
    return 0


def _suite(given: argparse.Namespace) -> int:
    if given.suite not in SUITES:
        raise UserError(f"no suite '{given.suite}'; {close_names(given.suite, SUITES)}", USAGE)
    seeds = _listed("seeds", given.seeds, int) or [0, 1, 2]
    target_gsds = _listed("target-gsd", given.target_gsd, float) or list(learning.TARGET_GSDS)
    shares = _listed("labels", given.labels, float) or list(learning.SHARES)
    _refuse_impossible(Settings(), target_gsds, seeds, shares, 0.0)
    results = learning.measure(
        given.checkpoint, seeds=seeds, target_gsds=target_gsds, shares=shares, told=_note
    )
    learning_report.write(results, given.workdir)
    print(learning_report.table(results))
    return 0


def evaluate(
    task: str,
    data: str | Path,
    workdir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    encoders: Sequence[str] = (),
    protocol: str = "corrected",
    target_gsds: Sequence[float] = (),
    seeds: Sequence[int] = (),
    labels: Sequence[float] = (1.0,),
    dtype: str = "float32",
    cache: Path | None = None,
    cache_limit: float = 50.0,
    settings: Settings | None = None,
) -> list[dict[str, Any]]:
    """Scores of encoders on tasks; results.json, table.md and pictures go to the workdir.

    Args:
        task: names of tasks, comma-separated, `all`, or the YAML file of one's own.
        data: the folder of its original files; of several tasks, the folder that holds one folder per task.
        checkpoint: a workdir, an exported folder, or an official .ckpt.
        encoders: of `encoders.KINDS`; default: the checkpoint, where one is given, and the baselines that can do the
            task (the U-Net predicts maps only).
        target_gsds, seeds, labels: every combination is run; default: the task's and the protocol's.
        cache_limit: GiB of kept features.

    Returns:
        One dictionary per run, as in results.json.

    Raises:
        UserError: whatever is wrong with the data, the names or the weights.
    """
    folder, source = Path(workdir), Path(data)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    rules = protocols.by_name(protocol)
    settings = settings or Settings()
    _refuse_impossible(settings, target_gsds, seeds, labels, cache_limit)
    names = list(encoders) or [name for name in KINDS if checkpoint or name != "checkpoint"]
    for name in names:
        if name not in KINDS:
            raise UserError(f"no encoder '{name}'; {close_names(name, KINDS)}", USAGE)
    tasks = _tasks(task)
    kept = Cache(cache or folder / "features", int(cache_limit * 2**30), _note)
    opened = {name: open_encoder(name, checkpoint, rules.sampling, dtype) for name in names}
    chosen = [
        (described, encoder, gsd, share, seed)
        for described in tasks
        for encoder in opened.values()
        if encoders or encoder.frozen or _trains_maps(described, settings)
        for gsd in (target_gsds if target_gsds and encoder.name != "unet" else [None])
        for share in labels
        for seed in (seeds or [rules.seed])
    ]
    results = []
    for number, (described, encoder, gsd, share, seed) in enumerate(chosen, 1):
        where = source / described if len(tasks) > 1 else source
        opened_task = open_task(described, where, rules)
        told = Settings(**{**settings.__dict__, "target_gsd": gsd, "labels": share, "seed": seed})
        place = (
            folder / "runs" / "_".join(_part(p) for p in (opened_task.name, encoder.name, gsd, share, seed))
        )
        one = Run(opened_task, encoder, told, place, kept, _note)
        label = f"{number}/{len(chosen)} {opened_task.name}, {report.seen_by(encoder.name, one.told_gsd)}"
        with console.progress(one.units, label, "steps", start=one.units_done()) as bar:
            result = one.result(_teller(bar))
        result |= {"flops": cost(one), "expected": opened_task.command.expected, "metric": opened_task.metric}
        results.append(result)
        report.draw(opened_task, result, place)
    report.write(results, folder)
    return results


def cost(run: Run) -> dict[str, float]:
    """FLOPs of one place, two per multiply-add, attention included: of the encoder and of the decoder."""
    example = next(iter(run.fixed("test")))
    tiles, cut = example[2], example[3]
    of_encoder = 0.0
    if isinstance(run.encoder, Pretrained):
        of_encoder = run.encoder.flops(
            [cut[0].sample], run.features.sensors, run.target_gsd, run.features.series
        )
    of_decoder = 0.0
    if not run.closed:
        levels = run.features.of(cut[:1], keep=True, statistics=run.features.initial())
        size = cut[0].target.shape if cut[0].target.ndim == 2 else (1, 1)
        decoder, shapes = run.decoder, run.decoder.shapes()

        def decode(params: Any, statistics: Any, levels: Any) -> Any:
            return decoder.apply(params, statistics, levels, size)[0]

        of_decoder = flops.count(decode, *shapes, levels).flops
    return {"encoder": of_encoder * len(tiles), "decoder": of_decoder * len(tiles)}


def _refuse_impossible(
    settings: Settings,
    target_gsds: Sequence[float],
    seeds: Sequence[int],
    labels: Sequence[float],
    cache_limit: float,
) -> None:
    """UserError for the first value that no run could have."""
    for gsd in target_gsds:
        if not 0 < gsd < math.inf:
            raise UserError(f"--target-gsd is {gsd:g}, expected metres above 0", USAGE)
    for seed in seeds:
        if not 0 <= seed < 2**31:
            raise UserError(f"--seeds holds {seed}, expected numbers from 0 to {2**31 - 1}", USAGE)
    for share in labels:
        if not 0 < share <= 1:
            raise UserError(f"--labels holds {share:g}, expected shares above 0, at most 1", USAGE)
    for option in ("epochs", "batch_size", "replicate", "crop", "channels"):
        found = getattr(settings, option)
        if found is not None and found < 1:
            raise UserError(f"--{option.replace('_', '-')} is {found}, expected at least 1", USAGE)
    if not 0 <= cache_limit < math.inf:
        raise UserError(f"--cache-limit is {cache_limit:g}, expected GiB, 0 or more", USAGE)


def _trains_maps(described: str, settings: Settings) -> bool:
    """Whether the U-Net can stand beside the others."""
    pooled = load_task(described).get("family") in closed_form.PLACES
    return not pooled and settings.decoder not in closed_form.NAMES


def _tasks(text: str) -> list[str]:
    if text.endswith((".yaml", ".yml")):
        return [text]
    names = shipped() if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in shipped():
            raise UserError(
                f"no task '{name}'; {close_names(name, shipped())} (or --config FILE.yaml)", USAGE
            )
    return names


def _listed(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--{option} {text}: expected numbers, comma-separated", USAGE) from error


def _part(value: Any) -> str:
    return "task" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _teller(bar: console.Progress) -> Callable[[str], None]:
    return lambda info: bar.advance(info=info)


def _note(text: str) -> None:
    print(text, flush=True)
