"""Shards of a prepared corpus: cutting the work, and writing it in parallel, restartable processes.

A shard is written under a temporary name together with a part file (ids, statistics, rejected items); both appear by
renaming, so whatever is there is complete and is not done again. What a shard holds depends on the corpus alone,
never on the number of processes or on how often the work was interrupted.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters, writer

from ramen_jax import console
from ramen_jax.corpora import BadItem, Corpus, check_sample, open_corpus, records
from ramen_jax.corpora.records import EVERY_VARIANT
from ramen_jax.corpora.statistics import BandStatistics
from ramen_jax.own_files import file_hash
from ramen_jax.samples import ModalitySpec, Sample

SHARD_BYTES = 128 * 2**20  # of raw pixels, roughly; one process holds one shard in memory
_limited = False  # True in worker processes
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
FEWEST_SHARDS = 16  # so that a small corpus, too, is shared among processes
ITEM_SECONDS = 600
USUAL_DATES = 60  # of a time series whose length is not known before it is read


def features() -> tfds.features.FeaturesDict:
    """A dataset entry: one record, which `ramen_jax.corpora.records.decode` turns into a sample.

    One feature only: TFDS stores an entry as a protocol-buffer map, whose order changes from process to process.
    """
    return tfds.features.FeaturesDict({"record": tfds.features.Tensor(shape=(), dtype=np.object_)})


@dataclass(frozen=True)
class ShardJob:
    """One shard: which items of which corpus, and where its part file goes. Small enough to send to any worker."""

    description: Mapping[str, Any]
    source: str
    split: str
    items: tuple[str, ...]
    part: str  # path without suffix

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, entry) of every sample; after the last one the part file is written."""
        corpus = self.corpus()
        ids: list[str] = []
        rejected: list[dict[str, str]] = []
        deadly = self.deadly_items()
        statistics: dict[str, dict[str, BandStatistics]] = {}
        shapes = {spec.name: {"max_dates": 1, "has_valid": False} for spec in corpus.modalities}
        for item in self.items:
            if item in deadly:
                cause = "reading it killed or hung the process; damaged in a way that its library does not survive"
                rejected.append(rejection(self.split, item, BadItem(item, cause)))
                continue
            self.mark.write_text(item)
            with _time_limit():
                samples = _read(corpus, item, self.split, rejected)
            for sample, record in samples:
                ids.append(sample.id)
                _account(sample, corpus.modalities, statistics, shapes)
                yield sample.id, {"record": record}
        content = {
            "ids": ids,
            "rejected": rejected,
            "shapes": shapes,
            "statistics": {
                modality: {variant: values.to_dict() for variant, values in variants.items()}
                for modality, variants in statistics.items()
            },
        }
        records.write_json(Path(self.part + ".json"), content)

    def corpus(self) -> Corpus:
        return _opened(json.dumps(self.description), self.source)

    @property
    def mark(self) -> Path:
        """Holds the item that is being read, for whoever finds the process dead."""
        return Path(self.part + ".reading")

    def deadly_items(self) -> list[str]:
        path = Path(self.part + ".deadly")
        return json.loads(path.read_text()) if path.is_file() else []

    @property
    def finished(self) -> bool:
        return Path(self.part + ".array_record").is_file() and Path(self.part + ".json").is_file()


@functools.lru_cache(maxsize=1)
def _opened(description: str, source: str) -> Corpus:
    """The corpus, kept open from shard to shard: its index may be large."""
    return open_corpus(json.loads(description), Path(source))


def _read(
    corpus: Corpus, item: str, split: str, rejected: list[dict[str, str]]
) -> list[tuple[Sample, bytes]]:
    """The good samples of an item with their records; the others are listed with file and cause.

    Whatever an item raises, reading or encoding, is its own: the corpus goes on without it.
    """
    good = []
    try:
        for sample in corpus.read(item, split):
            try:
                check_sample(sample, corpus.modalities, sample.id)
                good.append((sample, records.encode(sample)))
            except Exception as error:
                rejected.append(rejection(split, item, _as_bad_item(sample.id, error)))
    except Exception as error:
        rejected.append(rejection(split, item, _as_bad_item(item, error)))
    return good


def _as_bad_item(where: str, error: Exception) -> BadItem:
    """What a library met in a damaged file that the reader did not foresee: the same quarantine."""
    return error if isinstance(error, BadItem) else BadItem(where, f"{type(error).__name__}: {error}")


def rejection(split: str, item: str, error: BadItem) -> dict[str, str]:
    return {"split": split, "item": item, "file": error.file, "cause": error.cause}


def _account(
    sample: Sample,
    modalities: Sequence[ModalitySpec],
    statistics: dict[str, dict[str, BandStatistics]],
    shapes: dict[str, dict[str, Any]],
) -> None:
    variant = sample.extra.get("variant", {})
    for spec in modalities:
        image = sample.images[spec.name]
        shapes[spec.name]["max_dates"] = max(shapes[spec.name]["max_dates"], len(image.dates))
        shapes[spec.name]["has_valid"] |= image.valid is not None
        for name in {EVERY_VARIANT, variant.get(spec.name, EVERY_VARIANT)}:
            of_modality = statistics.setdefault(spec.name, {})
            if name not in of_modality:
                of_modality[name] = BandStatistics.empty(len(spec.sensor.bands))
            of_modality[name].add(image)


def write_shard(job: ShardJob) -> None:
    """Writes the shard and its part file, unless both are there. Runs in worker processes."""
    shard, part = Path(job.part + ".array_record"), Path(job.part + ".json")
    if job.finished:
        return
    entry = features()
    shard_writer = writer.ShardWriter(
        features=entry,
        serializer=example_serializer.ExampleSerializer(entry.get_serialized_info()),
        example_writer=writer.ExampleWriter(file_adapters.FileFormat.ARRAY_RECORD),
    )
    unfinished = shard.with_name(f"{shard.name}.{os.getpid()}.part")
    shard_writer.write(job(), unfinished)
    # Hashed here, in parallel, rather than by whoever collects the shards.
    records.write_json(part, {**json.loads(part.read_text()), "sha256": file_hash(unfinished)})
    os.replace(unfinished, shard)


def plan_shards(
    description: Mapping[str, Any], corpus: Corpus, items: Mapping[str, Sequence[str]], parts: Path
) -> dict[str, list[ShardJob]]:
    """Items cut into shards of at most about SHARD_BYTES, and at least FEWEST_SHARDS where there are items enough.

    A function of the corpus alone, not of workers or machine.
    """
    per_sample = sum(
        spec.height
        * spec.width
        * len(spec.sensor.bands)
        * np.dtype(spec.dtype).itemsize
        * (USUAL_DATES if spec.series else 1)
        for spec in corpus.modalities
    )
    largest = max(1, SHARD_BYTES // (per_sample * corpus.samples_per_item))
    jobs: dict[str, list[ShardJob]] = {}
    for split, members in items.items():
        per_shard = min(largest, -(-len(members) // FEWEST_SHARDS))
        starts = range(0, len(members), per_shard)
        jobs[split] = [
            ShardJob(
                dict(description),
                str(corpus.source),
                split,
                tuple(members[start : start + per_shard]),
                str(parts / f"{split}-{index:05d}"),
            )
            for index, start in enumerate(starts)
        ]
    return jobs


def run_all(jobs: Sequence[ShardJob], workers: int, name: str) -> None:
    """Writes all shards, `workers` processes at a time, with a progress bar over items.

    A damaged file may kill or hang the library that reads it, and its process. With more than one worker such a file
    is singled out and rejected like any other; a single worker works in this process, unprotected.
    """
    total = sum(len(job.items) for job in jobs)
    pending = [job for job in jobs if not job.finished]
    done = total - sum(len(job.items) for job in pending)
    with console.progress(total, f"prepare {name}", "items", start=done) as progress:
        if workers <= 1:
            for job in pending:
                write_shard(job)
                progress.advance(len(job.items))
            return
        with _one_thread_per_process():
            while pending:
                try:
                    _run_pool(pending, workers, progress)
                except concurrent.futures.process.BrokenProcessPool:
                    for job in pending:
                        if job.mark.is_file() and not job.finished:
                            _single_out(job)
                            progress.advance(len(job.items))
                pending = [job for job in pending if not job.finished]


# Spawned, not forked: GDAL and HDF5 keep state that does not survive a fork.
_PROCESSES = multiprocessing.get_context("spawn")


def _run_pool(jobs: Sequence[ShardJob], workers: int, progress: console.Progress) -> None:
    """Raises BrokenProcessPool when a worker died."""
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), _PROCESSES, _in_worker) as pool:
        running = {pool.submit(write_shard, job): len(job.items) for job in jobs}
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
                progress.advance(running[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _single_out(job: ShardJob) -> None:
    """Writes one shard in a process of its own, again and again without the items over which that process dies."""
    while not job.finished:
        process = _PROCESSES.Process(target=_write_alone, args=(job,))
        process.start()
        process.join()
        if not process.exitcode:
            return
        item, deadly = job.mark.read_text(), job.deadly_items()
        if process.exitcode > 0 or item in deadly:
            # Not a reader's death: an ordinary error, told by the same work done here.
            write_shard(job)
        else:
            records.write_json(Path(job.part + ".deadly"), [*deadly, item])


def _write_alone(job: ShardJob) -> None:
    _in_worker()
    write_shard(job)


def _in_worker() -> None:
    global _limited
    _limited = True


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Lets a worker process die when one item takes longer than ITEM_SECONDS.

    The alarm is left to its default action, which ends the process: a handler in Python would wait for the very
    library call that hangs.
    """
    if _limited:
        signal.alarm(ITEM_SECONDS)
    try:
        yield
    finally:
        if _limited:
            signal.alarm(0)


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Worker processes started inside share the processors; threads of their own would only get in the way."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def place_file(source: Path, target: Path) -> None:
    """Puts a finished file under a second name, without copying where the file system can."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
