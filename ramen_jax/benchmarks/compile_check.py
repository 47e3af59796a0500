"""The real step of a configuration on a TPU slice that is not here; see `ramen_jax.compile_check`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ramen_jax import config as configuration
from ramen_jax.attention import splash
from ramen_jax.attention.attention import Attention
from ramen_jax.attention.blocks import NOBODY, block_ranges
from ramen_jax.benchmarks import hlo
from ramen_jax.benchmarks.step import with_statistics
from ramen_jax.console import DATA, USAGE, UserError, close_names
from ramen_jax.earth.places import CORPORA, corpus_spec
from ramen_jax.model import flops
from ramen_jax.parallel import chips
from ramen_jax.parallel.mesh import ROWS, make_mesh
from ramen_jax.rows.plan import Plan
from ramen_jax.rows.views import view_grid, visible_count
from ramen_jax.samples import CorpusSpec
from ramen_jax.training import experiment

SAMPLES = 100_000  # of a corpus that is not prepared: enough for the usual mixture of views
ROWS_LOOKED_AT = 32  # for the share of real pairs
TOWERS = {
    "encoder": ("embed_dim", "depth", "num_heads"),
    "decoder": ("decoder_embed_dim", "decoder_depth", "decoder_num_heads"),
}
PRODUCTS = 6  # of attention, 2 x width operations per pair each: two forward, four backward
PRODUCTS_RECOMPUTING = 7  # by splash, which forms the scores anew backward
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
    """One step on one chip.

    Attributes:
        parameters, optimizer, activations, peak: bytes; `activations` is None where the compiler found no room.
        flops: of the model: forward and backward once, real pairs of tokens only.
        executed: what the matrix units do for them, as operations of bfloat16: see `Arithmetic`.
        work: traffic and collectives; None where the compiler found no room.
        seconds_compiling: of the program.
    """

    corpus: str
    rows: int
    parameters: float
    optimizer: float
    activations: float | None
    peak: float
    flops: float
    executed: float
    work: hlo.Work | None
    seconds_compiling: float = 0.0

    def fits(self, chip: chips.Chip) -> bool:
        return self.work is not None and self.peak <= chip.memory

    def bound(self, chip: chips.Chip) -> str:
        """The part of the chip that needs the most time."""
        seconds = self.seconds(chip)
        return max(seconds, key=lambda name: seconds[name])

    def mfu(self, chip: chips.Chip) -> float:
        """At most this much of the chip's peak goes into `flops`."""
        return self.flops / chip.flops / max(self.seconds(chip).values())

    def seconds(self, chip: chips.Chip) -> dict[str, float]:
        """What each part of the chip needs at its peak."""
        found = {"arithmetic": self.executed / chip.flops}
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
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # a program from the cache was not compiled just now
    print(
        f"{topology.name}: {topology.chips} chips of {_gib(topology.chip.memory)}, "
        f"{topology.chip.flops / 1e12:.0f} TFLOP/s in bfloat16; {config.model.dtype}",
        flush=True,
    )
    checks: list[Check] = []
    for count in rows:
        settings = with_rows(arguments.config, overrides, config, count, devices)
        for name in wanted:
            found = check(settings, name, make_mesh(settings, devices), topology.chip)
            for line in table(found, topology.chip, settings):
                print(line, flush=True)
            checks.append(found)
    if len(checks) > 1:
        print(summary(checks, topology.chip), flush=True)
    return 0 if all(found.fits(topology.chip) for found in checks) else 1


def rows_asked(text: str) -> list[int]:
    """ "4,8" -> [4, 8]; [0], the configuration's own, for ""."""
    if not re.fullmatch(r"([1-9]\d{0,5}(,[1-9]\d{0,5})*)?", text):
        raise UserError(f"--rows is {text!r}, expected rows per chip, comma-separated, e.g. 4,8", USAGE)
    return [int(part) for part in text.split(",")] if text else [0]


def with_rows(path: str, overrides: list[str], config: Any, rows: int, devices: list[Any]) -> Any:
    """The configuration with `rows` rows per chip that holds rows; for 0 its own, or the next number that divides."""
    mesh = make_mesh(config, devices)
    shards = math.prod(mesh.shape[axis] for axis in ROWS[0])
    keys = {"data.rows_per_step": config.data.rows_per_step}
    keys |= {
        f"corpora.{each.name}.rows_per_step": each.rows_per_step
        for each in config.corpora
        if each.rows_per_step
    }
    step = shards * config.optimizer.accumulate
    wanted = {key: rows * shards or -(-found // step) * step for key, found in keys.items()}
    changed = [f"{key}={wanted[key]}" for key in keys if wanted[key] != keys[key]]
    if changed and not rows:
        print(f"{shards} chips hold rows: config.{', config.'.join(changed)}", flush=True)
    return configuration.load(path, [*overrides, *changed])


def describe(name: str) -> list[Any]:
    """The devices of a slice, without any. UserError where libtpu is missing or does not know the slice."""
    # Else libtpu asks a cloud that is not there, and wants the one TPU of this machine for itself.
    for key, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"compiling for {name} needs the compiler of TPUs: pip install libtpu", DATA
            ) from None
        raise UserError(f"libtpu does not describe {name}: {reason}", DATA) from None


def check(config: Any, corpus: str, mesh: Mesh, chip: chips.Chip) -> Check:
    """Compiles the step of one corpus for the devices of a mesh, present or not."""
    (entry,) = (entry for entry in config.corpora if entry.name == corpus)
    source = Source(spec_of(entry), entry.samples or SAMPLES)
    plan = experiment.make_plan(config, {corpus: source}, config.seed)
    program, _ = experiment.make_program(config, plan, {}, mesh)
    held = plan.capacity(corpus).rows // math.prod(mesh.shape[axis] for axis in ROWS[0])
    parameters, optimizer = held_bytes(program.abstract.params), held_bytes(program.abstract.opt_state)
    counted = arithmetic(config, source.spec, plan, held, chip)
    shared = mesh.shape["tensor"]
    model = (counted.flops / shared, counted.executed / shared)
    lowered, began = program.lower_step(corpus), time.monotonic()
    try:
        compiled, text = compile_to_text(lowered)
    except jax.errors.JaxRuntimeError as error:
        peak = needed(str(error))
        if peak is None:
            raise
        return Check(corpus, held, parameters, optimizer, None, peak, *model, None, time.monotonic() - began)
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    taken += memory.generated_code_size_in_bytes
    return Check(
        corpus=corpus,
        rows=held,
        parameters=parameters,
        optimizer=optimizer,
        activations=memory.temp_size_in_bytes,
        peak=taken + memory.temp_size_in_bytes,
        flops=model[0],
        executed=model[1],
        work=hlo.read(text),
        seconds_compiling=seconds,
    )


def compile_to_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text as the compiler itself writes it.

    `Compiled.as_text` reads the program with the parser of jaxlib, which need not understand what a newer libtpu made.
    """
    with tempfile.TemporaryDirectory(prefix="ramen_jax_") as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        (text,) = Path(folder).glob("*after_optimizations.txt")
        return compiled, text.read_text()


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


class Arithmetic(NamedTuple):
    """Operations of matrix products of some rows.

    Attributes:
        flops: forward and backward, nothing recomputed, attention of real pairs only.
        executed: what the matrix units do: blocks recomputed, float32 products of the highest precision in six passes,
            attention of whole blocks and with scores formed anew backward, heads widened to a unit's lanes.
    """

    flops: float
    executed: float


def arithmetic(config: Any, spec: CorpusSpec, plan: Plan, rows: int, chip: chips.Chip) -> Arithmetic:
    """Of a step of `rows` rows. The pairs of dates within one token are left out: they are few."""
    inputs = experiment.inputs_of(spec, replace(plan.capacity(spec.name), rows=rows))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs.rows)
    plain = experiment.ramen(config)

    def products(remat: str) -> flops.Counted:
        model = replace(
            plain, architecture=replace(plain.architecture, remat=remat), attention=_NoPairs(backend="dense")
        )

        def loss(params: Any, statistics: Any, given: Any) -> Any:
            counts, key = model.counts(given), jax.random.key(0)
            return model.loss(params, statistics, given, inputs.bands, counts, train=True, key=key)

        return flops.count(jax.grad(loss, has_aux=True), *model.shapes, shapes)

    found, executed = products("none").flops, products(config.model.remat).passes
    for tower, tokens in planned_tokens(spec, plan, config.model.mask_ratio).items():
        width, depth, heads = (config.model[key] for key in TOWERS[tower])
        length = getattr(plan.capacity(spec.name), f"{tower}_length")
        per_pair = 2.0 * width * depth * rows
        padding = max(1.0, chip.lanes * heads / width)
        found += per_pair * PRODUCTS * real_pairs(tokens)
        executed += per_pair * PRODUCTS_RECOMPUTING * padding * visited_pairs(tokens, length)
    return Arithmetic(found, executed)


def planned_tokens(spec: CorpusSpec, plan: Plan, mask_ratio: float) -> dict[str, list[list[int]]]:
    """Tokens of each view of the plan's first rows, in the encoder and in the decoder."""
    rows: list[Any] = []
    while len(rows) < ROWS_LOOKED_AT:
        rows += plan.rows(len(rows) // plan.capacity(spec.name).rows)
    of_rows = [
        [len(view.modalities) * int(np.prod(view_grid(spec, view.target_gsd))) for view in row]
        for row in rows
    ]
    return {
        "encoder": [[1 + visible_count(tokens, mask_ratio) for tokens in row] for row in of_rows],
        "decoder": [[1 + tokens for tokens in row] for row in of_rows],
    }


def real_pairs(rows: list[list[int]]) -> float:
    """Pairs of tokens of one view, the mean over rows of views."""
    return sum(tokens**2 for row in rows for tokens in row) / len(rows)


def visited_pairs(rows: list[list[int]], length: int) -> float:
    """Pairs in the blocks that the TPU's attention goes through, padding among them; the mean over rows."""
    block = splash.block_of(length)
    whole = -(-length // block) * block
    ids = np.full((len(rows), whole), NOBODY, np.int32)
    for row, views in zip(ids, rows, strict=True):
        named = np.repeat(np.arange(1, len(views) + 1), views)[:length]
        row[:length] = 0
        row[: len(named)] = named
    first, last = block_ranges(jax.numpy.asarray(ids), block)
    return float(np.sum(np.asarray(last) - np.asarray(first))) * block**2 / len(rows)


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
    yield (
        f"  arithmetic       {found.flops / 1e12:.2f} TFLOP (real pairs, nothing recomputed); the matrix units do "
        f"{found.executed / 1e12:.2f}"
    )
    if found.work is not None:
        yield f"  memory traffic   {_gib(found.work.traffic)}, {found.work.rounds:,} rounds of loops"
        for (kind, element), value in sorted(found.work.collectives.items()):
            yield f"  {kind:<16} {value.count:,} of {element}, {value.bytes / 2**20:,.1f} MiB"
        seconds = found.seconds(chip)
        bound = found.bound(chip)
        each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())
        yield f"  step             at least {1e3 * seconds[bound]:.1f} ms, bound by {bound} ({each} ms)"
        yield f"  MFU              at most {found.mfu(chip):.0%}"
    yield f"  compiled in      {found.seconds_compiling:.0f} s"
    if not found.fits(chip):
        yield f"  does not fit: {advice(found, chip, config)}"


def summary(checks: Sequence[Check], chip: chips.Chip) -> str:
    """One line per check."""
    lines = [
        f"\n{'corpus':<12} {'rows':>4} {'peak GiB':>9} {'of chip':>8} {'step ms':>8}  {'bound by':<13} MFU"
    ]
    for found in checks:
        start = (
            f"{found.corpus:<12} {found.rows:>4} {found.peak / 2**30:>9.2f} {found.peak / chip.memory:>8.0%}"
        )
        if found.work is None:
            lines.append(f"{start}  does not fit")
            continue
        step = 1e3 * max(found.seconds(chip).values())
        fits = "" if found.fits(chip) else "  does not fit"
        lines.append(f"{start} {step:>8.1f}  {found.bound(chip):<13} {found.mfu(chip):.0%}{fits}")
    return "\n".join(lines)


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
