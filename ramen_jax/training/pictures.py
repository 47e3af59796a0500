"""From a training to its pictures: the loss, what it reconstructs, its features at several target GSDs.

Shape letters: T dates, C bands, H rows, W columns of an image; N tokens, D features; G grid side.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ramen_jax import console
from ramen_jax.corpora import buckets
from ramen_jax.corpora.records import Prepared
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.images import normalised
from ramen_jax.model.loss import pixel_mask, targets
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import Recipe
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import PackedView, view_grid
from ramen_jax.samples import CorpusSpec, Image, Sample
from ramen_jax.sensors import Sensor
from ramen_jax.training import checkpoint, metrics
from ramen_jax.visual import display, figures

TOKEN_BUDGET = 6_000  # tokens of one encoded scene, so that a picture takes seconds on a laptop
DATES = 12  # of a series that are given to the model, for the same reason


class Trained(NamedTuple):
    """A checkpoint ready to be run."""

    ramen: Ramen
    params: Any
    statistics: Any
    config: Any
    step: int
    sensors: dict[str, dict[str, Sensor]]  # those it was trained with, by corpus and modality


def load(path: Path) -> Trained:
    """The masked autoencoder of a workdir or checkpoint, with its weights."""
    loaded = checkpoint.load(path)
    config = ConfigDict(loaded.meta["config"])
    sensors = {
        corpus: {name: Sensor.from_dict(sensor) for name, sensor in modalities.items()}
        for corpus, modalities in loaded.meta["sensors"].items()
    }
    ramen = Ramen(
        Architecture.from_dict(loaded.meta["config"]["model"]),
        Recipe.from_dict(loaded.meta["config"]["traps"]),
    )
    return Trained(ramen, loaded.params, loaded.statistics, config, int(loaded.meta["step"]), sensors)


def packed(spec: CorpusSpec, views: list[PackedView], recipe: Recipe, mask_ratio: float) -> Any:
    """Rows of one view each."""
    rows = [[view] for view in views]
    return pack(spec, rows, exact_capacity(spec, rows, recipe, mask_ratio), recipe, mask_ratio)


def whole_view(corpus: Prepared, sample: Sample, target_gsd: float, seed: int) -> PackedView:
    """A view of a sample that keeps every modality it has, and DATES dates spread over each series."""
    names = tuple(m.name for m in corpus.spec.as_declared() if m.name in sample.images)
    rows, columns = view_grid(corpus.spec, target_gsd)
    noise = np.random.default_rng(seed).random(len(names) * rows * columns)
    statistics: dict[str, Any] = {name: corpus.statistics(sample, name) for name in names}
    dates = {}
    for name in names:
        last = len(sample.images[name].values) - 1
        dates[name] = np.unique(np.linspace(0, last, min(last + 1, DATES)).round().astype(int))
    return PackedView(sample, target_gsd, names, noise, dates, statistics)


def sensors_of(spec: CorpusSpec) -> dict[str, Sensor]:
    return {modality.name: modality.sensor for modality in spec.as_declared()}


def reconstructions(trained: Trained, corpus: Prepared, view: PackedView) -> dict[str, figures.Hidden]:
    """What the model makes of a view of which it sees a quarter, one date per modality.

    With the standardised target the reconstruction is the prediction in physical units. With the per-pixel target a
    prediction says how the bands of a pixel relate, not how bright the pixel is: mean and contrast of each pixel are
    then borrowed from the original.
    """
    ramen, kind = trained.ramen, trained.ramen.recipe.target
    sensors = sensors_of(corpus.spec)
    bands = {name: sensor.bands for name, sensor in sensors.items()}
    rows = packed(corpus.spec, [view], ramen.recipe, ramen.architecture.mask_ratio)

    @jax.jit
    def run(params: Any, statistics: Any, rows: Any) -> Any:
        predictions = ramen.reconstruct(params, statistics, rows, bands)
        return {
            name: (
                predictions[name],
                targets(normalised(images), kind),
                normalised(images),
                pixel_mask(images),
            )
            for name, images in rows.images.items()
        }

    results = {}
    outputs = jax.device_get(run(trained.params, trained.statistics, rows))
    for name in view.modalities:
        arrays, images, sensor = outputs[name], rows.images[name], sensors[name]
        image = view.sample.images[name]
        place = best_frame(image, view.dates[name])
        frame = view.dates[name][place]
        prediction, target, values = (array[0, 0, place] for array in arrays[:3])
        mean, std = (m[0, 0][:, None, None] for m in (images.mean_RxSxC, images.std_RxSxC))
        restored = prediction
        if kind == "per_pixel":
            restored = prediction * values.std(axis=0, ddof=1) + values.mean(axis=0)
        results[name] = figures.Hidden(
            original=image.values[frame].astype(np.float32) * sensor.scale + sensor.offset,
            reconstruction=(restored * std + mean) * sensor.scale + sensor.offset,
            target=target,
            prediction=prediction,
            hidden=arrays[3][0, 0] > 0,
            valid=np.ones(target.shape[1:], bool) if image.valid is None else image.valid[frame],
            day=int(image.dates[frame]),
        )
    return results


def zero_losses(spec: CorpusSpec, target: str) -> dict[str, float]:
    """The loss of predicting zero, by modality: what a model that learnt nothing about the image can reach.

    A pixel normalised across C bands with the unbiased variance has a mean square of (C - 1) / C; a standardised image
    has 1 over its corpus.
    """
    bands = {modality.name: len(modality.sensor.bands) for modality in spec.as_declared()}
    return {name: (count - 1) / count if target == "per_pixel" else 1.0 for name, count in bands.items()}


def best_frame(image: Image, kept: np.ndarray) -> int:
    """The place in `kept` of the date to show: most valid pixels, then in summer, then the darkest (without cloud)."""

    def rank(place: int) -> tuple[float, bool, float]:
        frame = kept[place]
        valid = 1.0 if image.valid is None else float(image.valid[frame].mean())
        summer = 120 <= int(image.dates[frame]) <= 270
        return (-round(valid, 2), not summer, float(image.values[frame].mean()))

    return min(range(len(kept)), key=rank)


def features(
    trained: Trained, corpus: Prepared, sample: Sample, target_gsds: list[float]
) -> list[np.ndarray]:
    """Features of a whole scene, nothing hidden, at each target GSD, as one program of one row each.

    Returns: [G, G, D] per target GSD, the mean over the modalities' tokens at each place.
    """
    views = [whole_view(corpus, sample, gsd, seed=0) for gsd in target_gsds]
    rows = packed(corpus.spec, views, trained.ramen.recipe, mask_ratio=0.0)
    bands = {name: sensor.bands for name, sensor in sensors_of(corpus.spec).items()}

    @jax.jit
    def run(params: Any, statistics: Any, rows: Any) -> Any:
        return trained.ramen.encode(params, statistics, rows, bands)

    maps = []
    for view, tokens_ExD in zip(
        views, jax.device_get(run(trained.params, trained.statistics, rows)), strict=True
    ):
        grid, modalities = view_grid(corpus.spec, view.target_gsd), len(view.modalities)
        tokens = tokens_ExD[1 : 1 + modalities * grid[0] * grid[1]]  # without CLS and padding
        maps.append(tokens.reshape(modalities, *grid, -1).mean(axis=0))
    return maps


def choose_gsds(spec: CorpusSpec, trained_on: tuple[float, ...]) -> list[float]:
    """Three target GSDs, coarse to fine: of those trained on as far as they go, else each half as fine as the next."""

    def tokens(gsd: float) -> int:
        rows, columns = view_grid(spec, gsd)
        return len(spec.modalities) * rows * columns

    extent = min(spec.first.height, spec.first.width) * spec.first.sensor.gsd
    usable = [gsd for gsd in sorted(trained_on) if gsd <= extent / 4 and tokens(gsd) <= TOKEN_BUDGET]
    if len(usable) >= 3:
        return [usable[-1], usable[len(usable) // 2], usable[0]]
    finest = usable[0] if usable else max(extent / 32, spec.first.sensor.gsd)
    while tokens(finest) > TOKEN_BUDGET:
        finest *= 2
    return [finest * 4, finest * 2, finest]


def open_corpus(workdir: Path, entry: Any, sensors: dict[str, Sensor]) -> Prepared:
    """The prepared corpus of a configuration's entry, seen by the sensors of the training.

    Its validation split, or its training split where the other is empty.
    """
    folder = buckets.local_folder(entry.prepared) if entry.prepared else workdir / "corpora" / entry.name
    try:
        corpus = Prepared(folder)
        if corpus.manifest["splits"].get("val", {}).get("shards"):
            corpus = Prepared(folder, "val")
    except ValueError as error:
        raise console.UserError(f"corpus {entry.name}: {error}") from error
    seen = tuple(dataclasses.replace(m, sensor=sensors[m.name]) for m in corpus.spec.modalities)
    corpus.spec = dataclasses.replace(corpus.spec, name=entry.name, modalities=seen)
    return corpus


def run(given: Any) -> int:
    """Draws what the arguments ask for. Returns the exit status."""
    if not given.workdir.is_dir():
        raise console.UserError(
            f"--workdir {given.workdir}: no such folder; give the one of a training", console.USAGE
        )
    if given.target_gsd is not None and not 0 < given.target_gsd < float("inf"):
        raise console.UserError(
            f"--target-gsd {given.target_gsd:g}: expected metres per token above 0", console.USAGE
        )
    trained = load(given.workdir)
    output = given.output or given.workdir / "pictures"
    print(f"Drawing {given.workdir} at step {trained.step:,} ({trained.config.recipe} recipe):", flush=True)

    entries = [ConfigDict(entry) for entry in trained.config.corpora]
    corpora = {
        entry.name: open_corpus(given.workdir, entry, trained.sensors[entry.name]) for entry in entries
    }
    for entry in entries:
        if not 0 <= given.sample < len(corpora[entry.name]):
            raise console.UserError(
                f"--sample {given.sample}: {entry.name} has samples 0 to {len(corpora[entry.name]) - 1}",
                console.USAGE,
            )
    output.mkdir(parents=True, exist_ok=True)
    baselines = {
        name: zero_losses(corpus.spec, trained.ramen.recipe.target) for name, corpus in corpora.items()
    }
    title = f"Pretraining loss, {trained.config.recipe} recipe, seed {trained.config.seed}"
    figures.loss(metrics.read(given.workdir), baselines, title, output / "loss.png")
    for entry in entries:
        draw_corpus(trained, corpora[entry.name], entry, given, output)
    return 0


def draw_corpus(trained: Trained, corpus: Prepared, entry: Any, given: Any, output: Path) -> None:
    """The reconstruction and the features of one sample of one corpus."""
    sample = corpus[given.sample]
    spec = corpus.spec
    sensors = sensors_of(spec)
    gsds = tuple(float(gsd) for gsd in entry.target_gsds)
    target_gsd = given.target_gsd or sorted(gsds)[len(gsds) // 2]
    view = whole_view(corpus, sample, target_gsd, given.seed)
    results = reconstructions(trained, corpus, view)
    visible = 1 - trained.ramen.architecture.mask_ratio
    rows, columns = view_grid(spec, target_gsd)
    figures.reconstructions(
        results,
        sensors,
        trained.ramen.recipe.target,
        f"{spec.name}, sample {sample.id} ({corpus.split}), step {trained.step:,}\n"
        f"{visible:.0%} of the tokens seen, target GSD {target_gsd:g} m: {rows} × {columns} tokens per modality",
        output / f"reconstruction_{entry.name}.png",
    )
    first = spec.first
    shown = results[first.name]
    scenes = [
        (f"{first.name}, {look.gsd:g} m pixels\n{look.title}", look.picture(shown.original))
        for look in display.looks(sensors[first.name], shown.original, shown.valid)[:1]
    ]
    chosen = choose_gsds(spec, gsds)
    maps = list(zip(chosen, features(trained, corpus, sample, chosen), strict=True))
    extent = (0.0, first.width * first.sensor.gsd, first.height * first.sensor.gsd, 0.0)
    figures.features(
        scenes,
        maps,
        extent,
        f"{spec.name}, sample {sample.id} ({corpus.split}), step {trained.step:,}: one encoder, three resolutions",
        output / f"features_{entry.name}.png",
    )
