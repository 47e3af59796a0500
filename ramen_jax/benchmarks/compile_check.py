"""The real step of a configuration on a TPU slice that is not here; see `ramen_jax.compile_check`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ramen_jax import config as configuration
from ramen_jax.attention.attention import Attention
from ramen_jax.benchmarks import chips, hlo
from ramen_jax.benchmarks.step import with_statistics
from ramen_jax.console import DATA, USAGE, UserError, close_names
from ramen_jax.earth.places import CORPORA, corpus_spec
from ramen_jax.model import flops
from ramen_jax.parallel.mesh import ROWS, make_mesh
from ramen_jax.rows.plan import Plan
from ramen_jax.rows.views import view_grid, visible_count
from ramen_jax.samples import CorpusSpec
from ramen_jax.training import experiment

SAMPLES = 100_000  # of a corpus that is not prepared: enough for the usual mixture of views
ROWS_LOOKED_AT = 32  # for the share of real pairs
UNITS = {"B": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclass(frozen=True)
class Source:
    """A corpus as the plan knows one, without any file."""

    spec: CorpusSpec
    samples: int

    def __len__(self) -> int:
        return self.samples


@dataclass(frozen=True)
class Check:
    """One step on one chip. Bytes; `flops` are the model's: forward and backward once, real pairs of tokens only.

    `activations` is None, and so are `work`, where the compiler gave up for lack of memory.
    """

    corpus: str
    rows: int
    parameters: float
    optimizer: float
    activations: float | None
    peak: float
    flops: float
    work: hlo.Work | None

    def seconds(self, chip: chips.Chip) -> dict[str, float]:
        """What each part of the chip needs at its peak."""
        found = {"arithmetic": self.flops / chip.flops}
        if self.work is not None:
            found |= {
                "memory": self.work.traffic / chip.bandwidth,
                "interconnect": self.work.sent / chip.links,
            }
        return found


def run(config: Any, arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints a table per corpus and number of rows. 1 where one does not fit."""
    topology = chips.topology(arguments.topology)
    names = [entry.name for entry in config.corpora]
    if arguments.corpus and arguments.corpus not in names:
        raise UserError(
            f"no corpus {arguments.corpus!r} in {arguments.config}; {close_names(arguments.corpus, names)}",
            USAGE,
        )
    wanted = [arguments.corpus] if arguments.corpus else names
    rows = rows_asked(arguments.rows)
    devices = describe(topology.name)
    print(
        f"{topology.name}: {topology.chips} chips of {_gib(topology.chip.memory)}, "
        f"{topology.chip.flops / 1e12:.0f} TFLOP/s in bfloat16; {config.model.dtype}",
        flush=True,
    )
    fits = True
    for count in rows:
        settings = with_rows(arguments.config, overrides, config, count, devices)
        for name in wanted:
            found = check(settings, name, make_mesh(settings, devices))
            for line in table(found, topology.chip, settings):
                print(line, flush=True)
            fits = fits and found.peak <= topology.chip.memory
    return 0 if fits else 1


def rows_asked(text: str) -> list[int]:
    """ "4,8" -> [4, 8]; [0], the configuration's own, for ""."""
    if not re.fullmatch(r"([1-9]\d{0,5}(,[1-9]\d{0,5})*)?", text):
        raise UserError(f"--rows is {text!r}, expected rows per chip, comma-separated, e.g. 4,8", USAGE)
    return [int(part) for part in text.split(",")] if text else [0]


def with_rows(path: str, overrides: list[str], config: Any, rows: int, devices: list[Any]) -> Any:
    """The configuration with `rows` rows per chip that holds rows; as it is for 0."""
    if not rows:
        return config
    mesh = make_mesh(config, devices)
    total = rows * math.prod(mesh.shape[axis] for axis in ROWS[0])
    more = [f"data.rows_per_step={total}"]
    more += [f"corpora.{entry.name}.rows_per_step={total}" for entry in config.corpora if entry.rows_per_step]
    return configuration.load(path, [*overrides, *more])


def describe(name: str) -> list[Any]:
    """The devices of a slice, without any. UserError where libtpu is missing or does not know the slice."""
    for key, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(key, value)  # else libtpu asks a cloud that is not there
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"compiling for {name} needs the compiler of TPUs: pip install libtpu", DATA
            ) from None
        raise UserError(f"libtpu does not describe {name}: {reason}", DATA) from None


def check(config: Any, corpus: str, mesh: Mesh) -> Check:
    """Compiles the step of one corpus for the devices of a mesh, present or not."""
    (entry,) = (entry for entry in config.corpora if entry.name == corpus)
    source = Source(spec_of(entry), entry.samples or SAMPLES)
    plan = experiment.make_plan(config, {corpus: source}, config.seed)
    program, _ = experiment.make_program(config, plan, {}, mesh)
    held = plan.capacity(corpus).rows // math.prod(mesh.shape[axis] for axis in ROWS[0])
    parameters, optimizer = held_bytes(program.abstract.params), held_bytes(program.abstract.opt_state)
    counted = model_flops(config, source.spec, plan, held) / mesh.shape["tensor"]
    lowered = program.lower_step(corpus)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = needed(str(error))
        if peak is None:
            raise
        return Check(corpus, held, parameters, optimizer, None, peak, counted, None)
    memory: Any = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Check(
        corpus=corpus,
        rows=held,
        parameters=parameters,
        optimizer=optimizer,
        activations=memory.temp_size_in_bytes,
        peak=taken + memory.temp_size_in_bytes,
        flops=counted,
        work=hlo.read(compiled.as_text() or ""),
    )


def spec_of(entry: Any) -> CorpusSpec:
    """Geometry of a corpus of the configuration, as the procedural Earth has it. UserError where it has none."""
    geometry = entry.options.get("geometry", "tiny") if entry.kind == "synthetic" else entry.kind
    if geometry not in CORPORA:
        raise UserError(
            f"corpus {entry.name}: no geometry is known for kind {geometry!r}; {close_names(geometry, CORPORA)}",
            USAGE,
        )
    return replace(with_statistics(corpus_spec(geometry)), name=entry.name)


def held_bytes(tree: Any) -> float:
    """Bytes that one device holds of an abstract tree."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


class _NoPairs(Attention):
    """Attention without scores, whose arithmetic depends on what is packed: counted from the plan instead."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        return v + 0 * (q + k)


def model_flops(config: Any, spec: CorpusSpec, plan: Plan, rows: int) -> float:
    """Operations of forward and backward of `rows` rows: nothing recomputed, attention of real pairs only.

    The pairs of dates within one token are left out: they are few.
    """
    plain = experiment.ramen(config)
    model = replace(
        plain, architecture=replace(plain.architecture, remat="none"), attention=_NoPairs(backend="dense")
    )
    inputs = experiment.inputs_of(spec, replace(plan.capacity(spec.name), rows=rows))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs.rows)

    def loss(params: Any, statistics: Any, given: Any) -> Any:
        key = jax.random.key(0)
        return model.loss(params, statistics, given, inputs.bands, model.counts(given), train=True, key=key)

    products = flops.count(jax.grad(loss, has_aux=True), *model.shapes, shapes).flops
    sizes, pairs = plain.architecture, real_pairs(spec, plan, config.model.mask_ratio)
    # Two products forward and four backward, each 2 x width operations per pair.
    encoder = 12.0 * sizes.embed_dim * sizes.depth * pairs["encoder"]
    decoder = 12.0 * sizes.decoder_embed_dim * sizes.decoder_depth * pairs["decoder"]
    return products + rows * (encoder + decoder)


def real_pairs(spec: CorpusSpec, plan: Plan, mask_ratio: float) -> dict[str, float]:
    """Pairs of tokens of one view, per row: the mean of the plan's first rows."""
    rows: list[Any] = []
    while len(rows) < ROWS_LOOKED_AT:
        rows += plan.rows(len(rows) // plan.capacity(spec.name).rows)
    sums = {"encoder": 0.0, "decoder": 0.0}
    for row in rows:
        for view in row:
            tokens = len(view.modalities) * int(np.prod(view_grid(spec, view.target_gsd)))
            sums["encoder"] += (1 + visible_count(tokens, mask_ratio)) ** 2
            sums["decoder"] += (1 + tokens) ** 2
    return {name: total / len(rows) for name, total in sums.items()}


def needed(message: str) -> float | None:
    """Bytes that the compiler wanted, from its complaint; None where it complains of something else."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    return float(found[1]) * UNITS[found[2] or "B"] if found else None


def table(found: Check, chip: chips.Chip, config: Any) -> Iterator[str]:
    """The lines of one check, all per chip and step."""
    yield f"\n{found.corpus}, {found.rows} rows per chip"
    yield f"  parameters       {_gib(found.parameters)}"
    yield f"  optimizer        {_gib(found.optimizer)}"
    if found.activations is not None:
        yield f"  temporaries      {_gib(found.activations)} (activations, gradients)"
    share = found.peak / chip.memory
    yield f"  peak             {_gib(found.peak)} of {_gib(chip.memory)} ({share:.0%})"
    yield f"  arithmetic       {found.flops / 1e12:.2f} TFLOP (real pairs, nothing recomputed)"
    if found.work is not None:
        yield f"  memory traffic   {_gib(found.work.traffic)}"
        for (kind, element), value in sorted(found.work.collectives.items()):
            yield f"  {kind:<16} {value.count:,} of {element}, {value.bytes / 2**20:,.1f} MiB"
        seconds = found.seconds(chip)
        bound = max(seconds, key=lambda name: seconds[name])
        each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())
        yield f"  step             at least {1e3 * seconds[bound]:.1f} ms, bound by {bound} ({each} ms)"
        yield f"  MFU              at most {seconds['arithmetic'] / seconds[bound]:.0%}"
    if share > 1:
        yield f"  does not fit: {advice(found, chip, config)}"


def advice(found: Check, chip: chips.Chip, config: Any) -> str:
    """The cheapest change that would make it fit, by arithmetic on what the compiler said."""
    state = found.parameters + found.optimizer
    rest = found.peak - state
    if state > 0.5 * chip.memory and config.sharding.fsdp == 1:
        return "split the state over the chips: --config.sharding.data=1 --config.sharding.fsdp=-1"
    if config.model.dtype == "float32" and state + rest / 2 <= chip.memory:
        return "activations of half the size: --config.model.dtype=bfloat16"
    if config.model.remat != "full":
        return "recompute blocks backward: --config.model.remat=full"
    room = chip.memory - state
    for micro in range(2, found.rows + 1):
        if found.rows % micro == 0 and room > 0 and rest / micro <= room:
            steps = micro * config.optimizer.accumulate
            return f"the same step in more micro-batches: --config.optimizer.accumulate={steps}"
    if config.model.dtype == "float32":
        return "activations of half the size: --config.model.dtype=bfloat16, and fewer rows"
    if room > 0 and found.rows > 1 and rest / found.rows <= room:
        return f"--rows {int(found.rows * room / rest)}"
    larger = [other.name for other in chips.CHIPS.values() if other.memory >= found.peak]
    if larger:
        return f"chips with more memory: {', '.join(larger)}"
    return "a smaller model, a shorter config.data.row_length, or more chips with --config.sharding.fsdp=-1"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
