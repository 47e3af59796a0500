"""From a configuration to what is trained on what: prepared corpora, plan, model, program, batches."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ramen_jax.config import plain, recipe_of
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.corpora import buckets
from ramen_jax.corpora.preparation import prepare
from ramen_jax.corpora.records import Prepared, read_manifest, verify_files
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.loss import check_target
from ramen_jax.model.ramen import Ramen
from ramen_jax.parallel import agree
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.rows import pipeline
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.rows.shapes import row_shapes
from ramen_jax.rows.views import Capacity
from ramen_jax.samples import CorpusSpec
from ramen_jax.training.evaluators import Evaluator, Validation
from ramen_jax.training.loop import Job
from ramen_jax.training.program import Inputs, Program

VALIDATION_SEED = 1_000_003  # added to the seed: the validation draws are never those of the training


def ramen(config: ConfigDict) -> Ramen:
    """The model of a configuration."""
    return Ramen(Architecture.from_dict(config.model.to_dict()), recipe_of(config))


def inputs_of(spec: CorpusSpec, capacity: Capacity) -> Inputs:
    """What a step is given of a corpus; no image is looked at."""
    bands = {modality.name: modality.sensor.bands for modality in spec.modalities}
    return Inputs(bands, row_shapes(spec, capacity))


def build(config: ConfigDict, workdir: Path) -> Job:
    """Prepares what is not prepared yet and plans the training. Opens no image. Raises UserError."""
    if not config.corpora:
        raise UserError("config.corpora is empty: a training needs at least one corpus", USAGE)
    sources = {entry.name: open_corpus(config, entry, workdir) for entry in config.corpora}
    agree.together("opening the prepared corpora", agree.LONG)  # each host may have copied terabytes first
    if config.data.verify:
        verify(sources)
    for name, source in sources.items():
        for modality in source.spec.modalities:
            try:
                check_target(config.traps.target, len(modality.sensor.bands), f"{name} {modality.name}")
            except ValueError as error:
                raise UserError(str(error), USAGE) from None
    plan = make_plan(config, sources, config.seed)
    held_out = _held_out(config, workdir) if config.validation.every else {}
    if config.data.verify:
        verify(held_out)
    plans = {
        name: make_plan(config, {name: source}, config.seed + VALIDATION_SEED)
        for name, source in held_out.items()
    }
    program, steps = make_program(config, plan, plans)
    evaluators: list[Evaluator] = []
    if held_out:
        steps_of = {
            name: pipeline.StepSource(
                plans[name],
                {name: source},
                training=False,
                local_rows={name: program.local_rows(name, "evaluation")},
            )
            for name, source in held_out.items()
        }
        every, count = config.validation.every, config.validation.steps
        evaluators.append(Validation(program, every, lambda: _validation_batches(steps_of, count)))
    return Job(
        program=program,
        identity={
            "sensors": {name: _sensors(source.spec) for name, source in sources.items()},
            "fingerprints": {name: source.spec.fingerprint for name, source in sources.items()},
            "plan": plan.summary(),
        },
        batches=lambda start: _batches(program, plan, sources, start),
        steps=steps,
        evaluators=evaluators,
    )


def make_program(
    config: ConfigDict, plan: Plan, validation: Mapping[str, Plan], mesh: jax.sharding.Mesh | None = None
) -> tuple[Program, int]:
    """What is compiled for a plan, and the number of steps; `mesh`: of the devices at hand if none is given."""
    steps_per_epoch = sum(plan.steps_per_epoch(name) for name in plan.corpora)
    steps = config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
    program = Program(
        config,
        ramen(config),
        {name: inputs_of(corpus.spec, plan.capacity(name)) for name, corpus in plan.corpora.items()},
        make_mesh(config) if mesh is None else mesh,
        steps,
        steps_per_epoch,
        {name: inputs_of(held.corpora[name].spec, held.capacity(name)) for name, held in validation.items()},
    )
    return program, steps


def make_plan(config: ConfigDict, sources: Mapping[str, Any], seed: int) -> Plan:
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
        recipe=recipe_of(config),
        mask_ratio=config.model.mask_ratio,
    )


def _batches(
    program: Program, plan: Plan, sources: Mapping[str, Prepared], start: int
) -> Iterator[pipeline.StepBatch]:
    data = program.config.data
    return pipeline.batches(
        plan,
        sources,
        start_step=start,
        local_rows={name: program.local_rows(name) for name in plan.corpora},
        workers=data.workers,
        prefetch=data.prefetch,
    )


def _held_out(config: ConfigDict, workdir: Path) -> dict[str, Prepared]:
    """The val split of each corpus that has one."""
    return {
        entry.name: open_corpus(config, entry, workdir, split="val")
        for entry in config.corpora
        if "val" in read_manifest(_prepare(config, entry, workdir))["splits"]
    }


def _validation_batches(
    sources: Mapping[str, pipeline.StepSource], steps: int
) -> Iterator[pipeline.StepBatch]:
    for source in sources.values():
        for step in range(steps):
            yield source.step(step)


def _prepare(config: ConfigDict, entry: ConfigDict, workdir: Path) -> Path:
    """The folder of a prepared corpus, prepared first if need be (processes that come second wait for the first)."""
    folder = buckets.local_folder(entry.prepared) if entry.prepared else workdir / "corpora" / entry.name
    return prepare(plain(entry), folder, recipe_of(config))


def open_corpus(config: ConfigDict, entry: ConfigDict, workdir: Path, split: str = "train") -> Prepared:
    """A split of a corpus of the configuration, prepared first if need be. Raises UserError."""
    folder = _prepare(config, entry, workdir)
    try:
        source = Prepared(folder, split, recipe_of(config))
    except ValueError as error:
        raise UserError(f"corpus {entry.name}: {error}", DATA) from None
    source.spec = dataclasses.replace(source.spec, name=entry.name)
    return source


def verify(sources: Mapping[str, Prepared]) -> None:
    """Hashes the files of prepared corpora, each process its share of them. UserError in every process."""
    files = {path: sha for source in sources.values() for path, sha in source.files().items()}
    mine = dict(list(files.items())[jax.process_index() :: jax.process_count()])
    told = ""
    try:
        verify_files(mine, "verifying the prepared corpora")
    except (ValueError, OSError) as error:
        told = str(error)
    troubled = agree.first_trouble("verifying the prepared corpora", bool(told), agree.LONG)
    if troubled >= 0:
        raise UserError(told or f"a prepared corpus is damaged; process {troubled} says which file", DATA)


def _sensors(spec: CorpusSpec) -> dict[str, Any]:
    return {modality.name: modality.sensor.to_dict() for modality in spec.modalities}
