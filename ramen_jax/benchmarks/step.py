"""Time and memory of the real training step, and speed of the data pipeline; see `ramen_jax.bench`."""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ramen_jax import storage
from ramen_jax.config import recipe_of
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.earth.places import corpus_spec
from ramen_jax.limits import refuse_beyond_memory
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.rows import pipeline
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import PackedView, view_grid
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.training import experiment
from ramen_jax.training.pretrain import enable_compilation_cache
from ramen_jax.training.program import Program


def run(config: Any, arguments: argparse.Namespace) -> int:
    """Measures what the arguments ask for and prints the figures, one a line."""
    if arguments.data_only:
        if not (0 < arguments.seconds < math.inf and 0 < arguments.step_seconds < math.inf):
            raise UserError("--seconds and --step-seconds must be finite and above 0", USAGE)
        for line in data_table(
            config, arguments.workdir, arguments.corpus, arguments.seconds, arguments.step_seconds
        ):
            print(line, flush=True)
        return 0
    if not 0 < arguments.target_gsd < math.inf:
        raise UserError(
            f"--target-gsd is {arguments.target_gsd:g}, expected a positive number of metres", USAGE
        )
    if arguments.batch < 1 or arguments.steps < 1 or arguments.dates < 0:
        raise UserError("--batch and --steps must be at least 1, --dates at least 0", USAGE)
    enable_compilation_cache(config)
    spec = with_statistics(corpus_spec(arguments.corpus))
    known = [modality.name for modality in spec.as_declared()]
    modalities = arguments.modalities.split("+") if arguments.modalities else known
    for name in modalities:
        if name not in known:
            raise UserError(f"corpus {spec.name} has no modality {name!r}; {close_names(name, known)}", USAGE)

    def tell(figures: dict[str, Any]) -> None:
        if arguments.json:
            print(json.dumps(figures), flush=True)

    figures = measure_step(
        config, spec, arguments.target_gsd, arguments.dates, modalities, arguments.steps, tell
    )
    if arguments.json:
        tell({**figures, "machine": machine()})
    else:
        print_table(arguments, config, modalities, figures)
    return 0


def random_image(modality: ModalitySpec, dates: int, rng: np.random.Generator) -> Image:
    """Noise around the sensor's mean, in stored units, in the modality's shape."""
    bands = len(modality.sensor.bands)
    shape = (dates, bands, modality.height, modality.width)
    values = rng.standard_normal(shape, np.float32)
    if modality.sensor.mean is not None and modality.sensor.std is not None:
        mean, std = np.array(modality.sensor.mean), np.array(modality.sensor.std)
        physical = values * std[:, None, None] + mean[:, None, None]
        values = (physical - modality.sensor.offset) / modality.sensor.scale
    dtype = np.dtype(modality.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    days = np.linspace(1, 366, dates).astype(np.int16)
    return Image(values.astype(dtype), days, np.ones(bands, bool))


def with_statistics(spec: CorpusSpec) -> CorpusSpec:
    """The same corpus, sensors without statistics getting mean 0 and standard deviation 1 (the noise's own)."""
    modalities = []
    for modality in spec.as_declared():
        bands = len(modality.sensor.bands)
        sensor = modality.sensor
        if sensor.mean is None or sensor.std is None:
            sensor = sensor.with_statistics((0.0,) * bands, (1.0,) * bands)
        modalities.append(replace(modality, sensor=sensor))
    return replace(spec, modalities=tuple(modalities))


def random_views(
    spec: CorpusSpec, count: int, target_gsd: float, dates: int, modalities: Sequence[str], seed: int = 0
) -> list[list[PackedView]]:
    """`count` rows of one view each; series have `dates` dates (0: the corpus's longest)."""
    rng = np.random.default_rng(seed)
    rows, columns = view_grid(spec, target_gsd)
    _refuse_impossible(spec, count, rows * columns, dates, modalities)
    views = []
    for index in range(count):
        images = {
            modality.name: random_image(
                modality, (dates or modality.max_dates) if modality.series else 1, rng
            )
            for modality in spec.as_declared()
            if modality.name in modalities
        }
        noise = rng.random(rows * columns * len(modalities))
        views.append([PackedView(Sample(f"random{index}", images), target_gsd, tuple(modalities), noise)])
    return views


def _refuse_impossible(
    spec: CorpusSpec, count: int, cells: int, dates: int, modalities: Sequence[str]
) -> None:
    """UserError when the random images and their noise alone would not fit into memory."""
    kept = [modality for modality in spec.as_declared() if modality.name in modalities]
    values = sum(
        ((dates or modality.max_dates) if modality.series else 1)
        * len(modality.sensor.bands)
        * modality.height
        * modality.width
        for modality in kept
    )
    refuse_beyond_memory(
        f"{count} views of {values:,} pixel values and {cells * len(kept):,} cells",
        4.0 * count * (values + 2 * cells * len(kept)),
        "use fewer --dates or a smaller --batch, or a coarser --target-gsd",
    )


def peak_memory() -> tuple[float, str]:
    """(bytes, what they are): device memory where the backend counts it, resident memory of the process otherwise."""
    counted = jax.local_devices()[0].memory_stats()
    if counted and "peak_bytes_in_use" in counted:
        return float(counted["peak_bytes_in_use"]), "peak device memory"
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit, "peak resident memory"


def measure_step(
    config: Any,
    spec: CorpusSpec,
    target_gsd: float,
    dates: int,
    modalities: Sequence[str],
    steps: int,
    tell: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, float]:
    """Figures of the step after compilation, in seconds by the clock.

    `matmul_flops` is what this process reaches with a product of two square matrices of the model's dtype, measured
    after the steps; `packing_seconds`: packing the step's views into rows, by one process.

    Args:
        tell: called with {"seconds": ...} after every step, the first included.
    """
    recipe, mask_ratio = recipe_of(config), config.model.mask_ratio
    views = random_views(spec, config.data.rows_per_step, target_gsd, dates, modalities)
    capacity = exact_capacity(spec, views, recipe, mask_ratio)
    rows = pack(spec, views, capacity, recipe, mask_ratio)
    began = time.monotonic()
    rows = pack(spec, views, capacity, recipe, mask_ratio)
    packing_seconds = time.monotonic() - began
    inputs = {spec.name: experiment.inputs_of(spec, capacity)}
    program = Program(
        config, experiment.ramen(config), inputs, make_mesh(config), steps=1000, steps_per_epoch=100
    )
    compile_seconds = program.compile()
    placed, compiled, state = program.place(spec.name, rows), program.step(spec.name), program.create_state()
    seconds = []
    for _ in range(steps + 1):
        began = time.monotonic()
        state, metrics = compiled(state, placed)
        loss = float(jax.device_get(metrics["loss"]))
        seconds.append(time.monotonic() - began)
        tell({"seconds": seconds[-1]})
    if not np.isfinite(loss):
        raise RuntimeError(f"the loss of the benchmark became {loss}")
    timed = seconds[1:]
    peak = peak_memory()[0]
    return {
        "compile_seconds": compile_seconds,
        "step_seconds": statistics.median(timed),
        "fastest_seconds": min(timed),
        "slowest_seconds": max(timed),
        "packing_seconds": packing_seconds,
        "flops": program.model.training_flops(rows),
        "matmul_flops": matmul_rate(config.model.dtype),
        "tokens": float(np.sum(rows.decoder_segment_RxL > 0)),
        "padded_tokens": float(rows.decoder_segment_RxL.size),
        "visible_tokens": float(np.sum(rows.encoder_segment_RxE > 0)),
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(state.params))),
        "loss": loss,
        "peak_bytes": peak,
    }


def matmul_rate(dtype: str, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some products of square matrices on this process's devices' first one."""
    matrix = jax.numpy.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(matrix, matrix).block_until_ready()
    fastest = math.inf
    for _ in range(repeats):
        began = time.monotonic()
        product(matrix, matrix).block_until_ready()
        fastest = min(fastest, time.monotonic() - began)
    return 2.0 * size**3 / fastest


def machine() -> str:
    """What the figures are of."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    what = f"{len(usable_cores())} cores" if on_cpu else f"{jax.device_count()} x {device.device_kind}"
    return f"{what}, jax {jax.__version__}"


def data_table(config: Any, workdir: str, corpus: str, seconds: float, step_seconds: float) -> Iterator[str]:
    """The lines of `--data-only`: one core's speed, then the whole pipeline feeding a step of `step_seconds`."""
    entries = {entry.name: entry for entry in config.corpora}
    if corpus not in entries:
        raise UserError(
            f"no corpus {corpus!r} in this configuration; {close_names(corpus, list(entries))}", USAGE
        )
    if not workdir and not entries[corpus].prepared:
        raise UserError(
            f"--data-only needs --workdir, or --config.corpora.{corpus}.prepared=DIR, to find the corpus",
            USAGE,
        )
    sources = {corpus: experiment.open_corpus(config, entries[corpus], storage.local(workdir))}
    plan = experiment.make_plan(config, sources, config.seed)
    capacity, real = plan.capacity(corpus), plan.real_token_share(corpus)
    yield f"corpus             {corpus}, {len(sources[corpus]):,} samples, draw {config.data.draw}"
    yield (
        f"step               {capacity.rows} rows of {capacity.decoder_length:,} decoder and "
        f"{capacity.encoder_length:,} encoder tokens"
    )
    yield f"real tokens        {real['decoder']:.1%} decoder, {real['encoder']:.1%} encoder (of an epoch)"
    one = pipeline.measure(plan, sources, seconds)
    yield (
        f"one worker         {one['samples_per_s']:,.1f} samples/s, {one['megabytes_per_s']:,.1f} MB/s of pixels, "
        f"{one['tokens_per_s']:,.0f} tokens/s"
    )
    yield (
        f"its time           {one['share_read']:.0%} reading, {one['share_plan']:.0%} planning, "
        f"{one['share_pack']:.0%} packing; {one['seconds'] / one['steps']:.3f} s a step"
    )
    workers, prefetch = config.data.workers, config.data.prefetch
    batches = pipeline.batches(plan, sources, workers=workers, prefetch=prefetch)
    with contextlib.closing(batches):
        waited = pipeline.share_waited(batches, seconds, step_seconds)
    yield (
        f"waiting for data   {waited:.1%} of the time, with {workers or 'no'} worker processes and a step of "
        f"{step_seconds:g} s, on {len(usable_cores())} cores"
    )
    yield f"bad samples        {one['bad']}"


def print_table(arguments: Any, config: Any, modalities: Sequence[str], figures: dict[str, float]) -> None:
    """The figures, one a line."""
    seconds = figures["step_seconds"]
    print(f"machine            {machine()}")
    print(
        f"model              {figures['parameters']:,.0f} parameters, {config.model.dtype}, recipe {config.recipe}"
    )
    print(
        f"geometry           {arguments.corpus}, {arguments.target_gsd:g} m, batch {arguments.batch}, "
        f"{', '.join(modalities)}, {arguments.dates or 'all'} dates"
    )
    print(f"tokens per step    {figures['tokens']:,.0f} decoder, {figures['visible_tokens']:,.0f} encoder")
    print(f"compile            {figures['compile_seconds']:.1f} s")
    print(
        f"step               {seconds:.3f} s median, {figures['fastest_seconds']:.3f} to "
        f"{figures['slowest_seconds']:.3f} s"
    )
    print(f"samples/s          {arguments.batch / seconds:.3f}")
    print(f"tokens/s           {figures['tokens'] / seconds:,.0f}")
    rate, matmul = figures["flops"] / seconds, figures["matmul_flops"]
    print(
        f"arithmetic         {rate / 1e9:,.0f} GFLOP/s in the blocks, {rate / matmul:.0%} of this process's matrix "
        f"products ({matmul / 1e9:,.0f})"
    )
    print(f"packing            {figures['packing_seconds'] / seconds:.1%} of the step's time, in one process")
    print(f"{peak_memory()[1]:<18} {figures['peak_bytes'] / 2**30:.2f} GiB")


def usable_cores() -> set[int]:
    """Processor cores this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
