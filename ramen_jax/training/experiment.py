"""From a configuration to what is trained on what: the model, the prepared corpora, the plan, the batches."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from ramen_jax.config import plain
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.corpora.records import Prepared, read_manifest
from ramen_jax.earth import places
from ramen_jax.model.loss import check_target
from ramen_jax.model.mae import RamenMAE, loss_counts
from ramen_jax.model.temporal import BatchStatistic
from ramen_jax.parallel.rules import logical_axes
from ramen_jax.prepare import prepare
from ramen_jax.rows import pipeline
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.samples import CorpusSpec
from ramen_jax.sensors import Sensor, sensor
from ramen_jax.training.loop import Job
from ramen_jax.training.step import Model, describe

VALIDATION_SEED = 1_000_003  # added to the seed: the validation draws are never those of the training


def ramen(config: ConfigDict) -> Model:
    """The masked autoencoder of a configuration, as the step needs it."""
    return describe(
        lambda: RamenMAE(config.model, config.traps, rngs=nnx.Rngs(config.seed)),
        BatchStatistic,
        lambda rows: loss_counts(rows, config.traps),
        logical_axes,
    )


def geometry(corpus: str) -> CorpusSpec:
    """The modalities, sizes and sensors of a corpus known by name. UserError lists the close ones."""
    return places.corpus_spec(corpus)


def build(config: ConfigDict, workdir: Path) -> Job:
    """Prepares what is not prepared yet and plans the training. Opens no image. Raises UserError."""
    if not config.corpora:
        raise UserError("config.corpora is empty: a training needs at least one corpus", USAGE)
    sources = {entry.name: open_corpus(config, entry, workdir) for entry in config.corpora}
    for name, source in sources.items():
        for modality in source.spec.modalities:
            try:
                check_target(config.traps.target, len(modality.sensor.bands), f"{name} {modality.name}")
            except ValueError as error:
                raise UserError(str(error), USAGE) from None
    plan = make_plan(config, sources, config.seed)
    steps_per_epoch = sum(plan.steps_per_epoch(name) for name in sources)
    return Job(
        model=ramen(config),
        sensors={name: _sensors(source.spec) for name, source in sources.items()},
        fingerprints={name: source.spec.fingerprint for name, source in sources.items()},
        plan=plan.summary(),
        batches=lambda start: _batches(config, plan, sources, start),
        steps=config.train.steps or max(1, round(config.train.epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        validation=_validation(config, workdir) if config.validation.every else None,
    )


def make_plan(config: ConfigDict, sources: dict[str, Prepared], seed: int) -> Plan:
    """Which views go to which row at which step, for these corpora of the configuration."""
    corpora = [
        PlannedCorpus(
            spec=sources[entry.name].spec,
            samples=min(entry.samples or len(sources[entry.name]), len(sources[entry.name])),
            target_gsds=tuple(float(gsd) for gsd in entry.target_gsds),
            weight=float(entry.weight),
            temporal_dropout=entry.temporal_dropout.to_dict(),
            row_length=entry.row_length or config.data.row_length or None,
            rows_per_step=entry.rows_per_step or None,
            max_dates=entry.max_dates.to_dict(),
        )
        for entry in config.corpora
        if entry.name in sources
    ]
    return Plan(
        corpora,
        seed=seed,
        rows_per_step=config.data.rows_per_step,
        draw=config.data.draw,
        views_per_sample=config.data.views_per_sample,
        mask_ratio=config.model.mask_ratio,
        temporal=config.traps.temporal,
    )


def recipe(config: ConfigDict, training: bool = True) -> pipeline.Recipe:
    """The packing options of the configuration."""
    return pipeline.Recipe(config.traps.sampling, config.traps.time_mask, training)


def _batches(
    config: ConfigDict, plan: Plan, sources: dict[str, Prepared], start: int
) -> Iterator[pipeline.StepBatch]:
    return pipeline.batches(
        plan,
        sources,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        recipe=recipe(config),
    )


def _validation(config: ConfigDict, workdir: Path) -> Any:
    """A function that yields the same validation batches at each call, or None when no corpus has a val split."""
    steps = []
    for entry in config.corpora:
        folder = _prepare(config, entry, workdir)
        if "val" in read_manifest(folder)["splits"]:
            source = open_corpus(config, entry, workdir, split="val")
            plan = make_plan(config, {entry.name: source}, config.seed + VALIDATION_SEED)
            share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
            options = {"recipe": recipe(config, training=False), **share}
            steps.append(pipeline.StepSource(plan, {entry.name: source}, **options))
    if not steps:
        return None
    return lambda: (source.step(step) for source in steps for step in range(config.validation.steps))


def _prepare(config: ConfigDict, entry: ConfigDict, workdir: Path) -> Path:
    """The folder of a prepared corpus, prepared first if need be (processes that come second wait for the first)."""
    folder = Path(entry.prepared).expanduser() if entry.prepared else workdir / "corpora" / entry.name
    options = {"repeats": config.traps.worldstrat_repeats} if entry.kind == "worldstrat" else {}
    return prepare({**plain(entry), "options": {**options, **plain(entry.options)}}, folder)


def open_corpus(config: ConfigDict, entry: ConfigDict, workdir: Path, split: str = "train") -> Prepared:
    """A split of a corpus of the configuration, prepared first if need be. Raises UserError."""
    folder = _prepare(config, entry, workdir)
    try:
        source = Prepared(folder, split, statistics=config.traps.statistics)
    except ValueError as error:
        raise UserError(f"corpus {entry.name}: {error}", DATA) from None
    source.spec = dataclasses.replace(
        source.spec,
        name=entry.name,
        modalities=tuple(
            dataclasses.replace(modality, sensor=_trap_sensor(config, modality.sensor))
            for modality in source.spec.modalities
        ),
    )
    return source


def _trap_sensor(config: ConfigDict, found: Sensor) -> Sensor:
    """The sensor as the recipe sees it: trap 17b gives two MMEarth bands each other's wavelength."""
    if found.name == "mmearth_s2" and config.traps.mmearth_wavelengths == "reference":
        assert found.mean is not None  # Prepared always gives both
        assert found.std is not None
        return sensor("mmearth_s2_reference").with_statistics(found.mean, found.std)
    return found


def _sensors(spec: CorpusSpec) -> dict[str, Sensor]:
    return {modality.name: modality.sensor for modality in spec.modalities}
