"""From steps to packed batches: a grain dataset over step numbers.

The element of step s is a pure function of (plan, sources, s, this process's share of the rows). The state of the
pipeline is therefore the step: start anywhere, on any number of hosts, at no cost, and get the same batches.

Processes read their own rows only. Worker processes are spawned and never import JAX (`worker_start.py`).
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.rows import worker_start
from ramen_jax.rows.batch import Images, Rows
from ramen_jax.rows.image_slots import check_image
from ramen_jax.rows.packing import pack
from ramen_jax.rows.plan import Plan, View, kept_dates, noise, origin
from ramen_jax.rows.views import Capacity, PackedView, view_grid
from ramen_jax.samples import CorpusSpec, Sample

_ENDLESS = 2**40  # steps; more than any training takes
_SMALLEST_SHARED = (
    1 << 10
)  # bytes; what is left of a batch must fit a pipe, or a killed worker leaves half a message
_START_SECONDS = 60.0
_MOST_DEATHS = 3  # of workers, without a batch between them


class Source(Protocol):
    """Samples by number, as `records.Prepared`.

    Optional methods: `statistics(sample, modality)` returns the mean and standard deviation [C] of that sample's
    variant, `read(index, modalities)` a sample that holds at least these modalities, `place(index)` its shard, record
    and id.
    """

    spec: CorpusSpec

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class StepBatch(NamedTuple):
    """One step's rows of this process."""

    step: int
    corpus: str
    rows: Rows  # numpy
    ids: list[str]  # of the samples in it
    bad: list[dict[str, Any]]  # samples left out: step, corpus, sample, id, shard, record (as known), cause
    counters: dict[str, int]  # `moved_tokens`, see `packing.pack`


class StepSource:
    """step -> StepBatch, by random access.

    Args:
        plan: decides everything.
        sources: samples of every corpus of the plan.
        training: whether dates are dropped, which is a draw of training only.
        first_step: the step of element 0.
        local_rows: corpus -> numbers of the rows of a step that this process reads; corpora not named: all rows.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Mapping[str, Source],
        *,
        training: bool = True,
        first_step: int = 0,
        local_rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.plan, self.sources, self.training, self.first_step = plan, dict(sources), training, first_step
        self.seconds: defaultdict[str, float] = defaultdict(float)  # spent on `plan`, `read`, `pack`
        self.bytes_read = 0
        self.samples_read = 0
        self._share: dict[str, tuple[int, ...]] = {}
        self._capacity: dict[str, Capacity] = {}
        for name, corpus in plan.corpora.items():
            if name not in self.sources:
                raise UserError(f"no samples for corpus '{name}'; {close_names(name, list(sources))}", USAGE)
            if len(self.sources[name]) < corpus.samples:
                raise UserError(
                    f"corpus {name} has {len(self.sources[name])} samples, the plan was made for {corpus.samples}"
                )
            capacity = plan.capacity(name)
            share = tuple((local_rows or {}).get(name, range(capacity.rows)))
            if not share or not set(share) <= set(range(capacity.rows)):
                raise ValueError(f"corpus {name}: rows {share} of a step of {capacity.rows} rows")
            self._share[name] = share
            self._capacity[name] = replace(capacity, rows=len(share))

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> StepBatch:
        return self.step(self.first_step + int(index))

    def step(self, step: int) -> StepBatch:
        """The batch of a step."""
        began = time.perf_counter()
        name = self.plan.corpus(step)
        planned = self.plan.rows(step, self._share[name])
        self.seconds["plan"] += time.perf_counter() - began
        spec = self.sources[name].spec
        wanted: dict[int, set[str]] = {}
        for view in (view for views in planned for view in views):
            wanted.setdefault(view.sample, set()).update(view.modalities)
        read = {sample: self._read(name, sample, kept) for sample, kept in wanted.items()}
        rows: list[list[PackedView]] = []
        bad: dict[int, dict[str, Any]] = {}
        for views in planned:
            rows.append([])
            for view in views:
                found = read[view.sample]
                cause = found if isinstance(found, str) else unusable(spec, found, view)
                if isinstance(found, str) or cause:
                    sample_id = "" if isinstance(found, str) else found.id
                    bad[view.sample] = {"id": sample_id, **self._place(name, view.sample), "cause": cause}
                else:
                    rows[-1].append(self._ready(spec, found, view))
        began = time.perf_counter()
        counters: dict[str, int] = {}
        packed = pack(
            spec,
            rows,
            self._capacity[name],
            self.plan.recipe,
            self.plan.mask_ratio,
            short_series="row",  # the neighbours on other hosts are not known here
            counters=counters,
        )
        self.seconds["pack"] += time.perf_counter() - began
        return StepBatch(
            step=step,
            corpus=name,
            rows=packed,
            ids=list(dict.fromkeys(view.sample.id for row in rows for view in row)),
            bad=[{"step": step, "corpus": name, "sample": sample, **why} for sample, why in bad.items()],
            counters=counters,
        )

    def _place(self, corpus: str, number: int) -> dict[str, Any]:
        """What can be said of where a sample lies."""
        place_of = getattr(self.sources[corpus], "place", None)
        if place_of is None:
            return {}
        try:
            place = place_of(number)
        except (OSError, ValueError):  # the list of ids is damaged itself, as the cause says
            return {}
        return {"id": place.id, "shard": place.shard.name, "record": place.record}

    def _read(self, corpus: str, number: int, modalities: set[str]) -> Sample | str:
        """A sample with at least these modalities, or why there is none."""
        source: Any = self.sources[corpus]
        began = time.perf_counter()
        try:
            sample = source.read(number, modalities) if hasattr(source, "read") else source[number]
        except Exception as error:
            # Whatever a damaged file raises, the run goes on and says what was left out.
            return f"{type(error).__name__}: {error}"
        finally:
            self.seconds["read"] += time.perf_counter() - began
        self.bytes_read += sum(image.values.nbytes for image in sample.images.values())
        self.samples_read += 1
        return sample

    def _ready(self, spec: CorpusSpec, sample: Sample, view: View) -> PackedView:
        corpus = self.plan.corpora[view.corpus]
        source = self.sources[view.corpus]
        rows, cols = view_grid(spec, view.target_gsd)
        dates = {}
        for name in view.modalities:
            if name in sample.images:
                available = len(sample.images[name].values)
                dropout = corpus.temporal_dropout.get(name, 0.0) if self.training else 0.0
                dates[name] = kept_dates(view, name, available, dropout, corpus.most_dates(name))
        statistics = getattr(source, "statistics", None)
        return PackedView(
            sample=sample,
            target_gsd=view.target_gsd,
            modalities=view.modalities,
            noise=noise(view, len(view.modalities) * rows * cols),
            dates=dates,
            statistics={name: statistics(sample, name) for name in view.modalities} if statistics else {},
            origin=origin(view) if self.plan.recipe.positions == "random" else (0.0, 0.0),
        )


def unusable(spec: CorpusSpec, sample: Sample, view: View) -> str:
    """Why a view cannot be trained on ("" if it can): an image unlike its modality, or nothing observed at all."""
    observed = False
    for name in view.modalities:
        image = sample.images.get(name)
        if image is None:
            continue
        try:
            check_image(spec.modality(name), image, sample.id)
        except ValueError as error:
            return str(error)
        observed |= bool(image.present.any()) and (image.valid is None or bool(image.valid.any()))
    return "" if observed else f"no valid pixel in {', '.join(view.modalities)}"


def batches(
    plan: Plan,
    sources: Mapping[str, Source],
    *,
    start_step: int = 0,
    local_rows: Mapping[str, Sequence[int]] | None = None,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[StepBatch, None, None]:
    """The batches of this process from `start_step` on, without end.

    Worker processes that die (killed for memory, say) are started again at the step they owe, which they can because
    a batch follows from its step. Raises UserError when they keep dying.

    Args:
        workers: reading processes; 0 reads in one thread of this process.
        prefetch: steps prepared ahead, per worker. Arrays travel through shared memory: a container needs
            (workers * prefetch + 2) batches of it.
    """
    worker_start.free_shared_memory_silently()
    import grain  # imports JAX, which reading a sample does not need
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its settings from absl flags, which only absl programs parse

    def source(step: int) -> StepSource:
        return StepSource(
            plan,
            sources,
            first_step=step,
            local_rows=local_rows,
        )

    if workers == 0:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, prefetch))
        yield from grain.MapDataset.source(source(start_step)).to_iter_dataset(options)
        return
    deaths = 0  # since the last batch
    while True:
        try:
            for batch in _from_workers(source(start_step), workers, prefetch):
                start_step, deaths = batch.step + 1, 0
                yield batch
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            deaths += 1
            if deaths > _MOST_DEATHS:
                raise UserError(
                    f"data workers die again and again at step {start_step} ({error}); if memory is short, lower "
                    "config.data.workers or config.data.prefetch"
                ) from error
            print(f"WARNING: {error} Starting the data workers again at step {start_step}", file=sys.stderr)


def _from_workers(steps: StepSource, workers: int, prefetch: int) -> Generator[StepBatch, None, None]:
    """The elements of `steps`, made by processes."""
    import grain

    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    shared = grain.experimental.DatasetOptions(min_shm_size=_SMALLEST_SHARED)
    ahead = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch))
    iterator = iter(grain.experimental.WithOptionsIterDataset(dataset, shared).mp_prefetch(ahead))
    try:
        others = len(multiprocessing.active_children())
        with worker_start.without_jax():
            first = next(iterator)  # grain starts its processes now, from threads
            deadline = time.monotonic() + _START_SECONDS
            while len(multiprocessing.active_children()) < others + workers and time.monotonic() < deadline:
                time.sleep(0.01)
        yield _plain(first)
        yield from map(_plain, iterator)
    finally:
        iterator.close()


def _plain(batch: StepBatch) -> StepBatch:
    """The batch with NumPy's own arrays in place of grain's shared ones, whose memory they keep and do not copy."""

    def own(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.asarray(array)

    images = {name: Images._make(map(own, images)) for name, images in batch.rows.images.items()}
    return batch._replace(rows=Rows._make([*map(own, batch.rows[:-1]), images]))


def share_waited(batches: Iterator[StepBatch], seconds: float, step_seconds: float) -> float:
    """Share of the time that a step of `step_seconds` waits for its batch, after a first batch that is not counted."""
    next(batches)
    time.sleep(step_seconds)
    began, waited = time.perf_counter(), 0.0
    while time.perf_counter() - began < seconds:
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    return waited / (time.perf_counter() - began)


def measure(plan: Plan, sources: Mapping[str, Source], seconds: float) -> dict[str, Any]:
    """Speed of reading, planning and packing on one core, as one worker does it.

    Args:
        seconds: how long to measure, after one untimed step.

    Returns:
        `steps`, `seconds`, `samples_per_s`, `samples_per_cpu_s` (of processor time), `views_per_s`, `tokens_per_s`
        (decoder), `megabytes_per_s` (pixels read, native dtype), `share_read`, `share_plan`, `share_pack` of the
        time, `real_encoder`, `real_decoder` (real-token shares of the rows met), `bad` (samples left out).
    """
    steps = StepSource(plan, sources)
    steps.step(0)
    steps.seconds.clear()
    steps.bytes_read = steps.samples_read = 0
    tokens = np.zeros(4, np.int64)  # real and all tokens of the encoder, of the decoder
    views = bad = step = 0
    began, used = time.perf_counter(), time.process_time()
    while step == 0 or time.perf_counter() - began < seconds:
        step += 1
        batch = steps.step(step)
        encoder, decoder = batch.rows.encoder_segment_RxE, batch.rows.decoder_segment_RxL
        tokens += [np.count_nonzero(encoder), encoder.size, np.count_nonzero(decoder), decoder.size]
        views += int(decoder.max(axis=1).sum())
        bad += len(batch.bad)
    elapsed = time.perf_counter() - began
    return {
        "steps": step,
        "seconds": elapsed,
        "samples_per_s": steps.samples_read / elapsed,
        "samples_per_cpu_s": steps.samples_read / (time.process_time() - used),
        "views_per_s": views / elapsed,
        "tokens_per_s": float(tokens[2]) / elapsed,
        "megabytes_per_s": steps.bytes_read / 1e6 / elapsed,
        **{f"share_{what}": steps.seconds[what] / elapsed for what in ("read", "plan", "pack")},
        "real_encoder": float(tokens[0] / tokens[1]),
        "real_decoder": float(tokens[2] / tokens[3]),
        "bad": bad,
    }
