"""The pipeline: a batch is a function of the step, on any number of hosts, in any process, with damaged samples."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.recipe import REFERENCE
from ramen_jax.rows.batch import Rows
from ramen_jax.rows.pipeline import StepBatch, StepSource, batches, measure
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.samples import Sample
from tests.rows.small_corpora import COASTS, COASTS_GSDS, FIELDS, FIELDS_GSDS, DeadlySource, SmallSource

SOURCES = {"fields": SmallSource(FIELDS, 1100), "coasts": SmallSource(COASTS, 1200)}


@functools.cache
def small_plan() -> Plan:
    corpora = [
        PlannedCorpus(FIELDS, 1100, FIELDS_GSDS, row_length=320, temporal_dropout={"s2": 0.3, "s1": 0.3}),
        PlannedCorpus(COASTS, 1200, COASTS_GSDS, weight=0.5),
    ]
    return Plan(corpora, seed=1, rows_per_step=8, recipe=REFERENCE)


def flat(rows: Rows) -> list[np.ndarray]:
    images = [array for modality in rows.images.values() for array in modality if array is not None]
    return [array for array in rows if not isinstance(array, dict)] + images


def digest(batch: StepBatch) -> str:
    """Every byte of a batch, with shapes and dtypes."""
    found = hashlib.sha256(json.dumps([batch.step, batch.corpus, batch.ids, batch.bad]).encode())
    for array in flat(batch.rows):
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def take(count: int, start: int = 0, sources=None, **options) -> list[StepBatch]:
    iterator = batches(small_plan(), sources or SOURCES, start_step=start, **options)
    found = list(islice(iterator, count))
    iterator.close()
    return found


def joined(parts: list[StepBatch]) -> list[np.ndarray]:
    """The global batch from the shares of all hosts."""
    return [np.concatenate(arrays) for arrays in zip(*(flat(part.rows) for part in parts), strict=True)]


def test_a_random_step_in_a_fresh_process_equals_the_one_met_in_sequence() -> None:
    met = {batch.step: digest(batch) for batch in take(12)}
    program = (
        "import sys\n"
        "from tests.rows.test_pipeline import SOURCES, StepSource, digest, small_plan\n"
        "source = StepSource(small_plan(), SOURCES)\n"
        "print(*[digest(source.step(step)) for step in (7, 3, 11)])\n"
        "assert not {'jax', 'torch', 'tensorflow', 'flax', 'grain'} & set(sys.modules), 'imports too much'\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [met[7], met[3], met[11]]


def test_resuming_at_any_step_gives_the_same_stream() -> None:
    whole = [digest(batch) for batch in take(10)]
    for start in (1, 4, 9):
        assert [digest(batch) for batch in take(10 - start, start)] == whole[start:]


def test_workers_give_the_same_batches_and_never_import_jax(tmp_path: Path) -> None:
    """The starting program has imported JAX and its main module is not importable twice."""
    script = tmp_path / "program.py"
    script.write_text(
        "import jax, sys\n"
        "from tests.rows.test_pipeline import SpySource, batches, digest, small_plan\n"
        "from tests.rows.test_pipeline import SOURCES, FIELDS, COASTS\n"
        "if __name__ != '__main__': raise SystemExit('a worker ran the main program')\n"
        "spies = {'fields': SpySource(FIELDS, 1100), 'coasts': SpySource(COASTS, 1200)}\n"
        "ids = set()\n"
        "stream = batches(small_plan(), spies, start_step=2, workers=2)\n"
        "for batch, _ in zip(stream, range(6)): ids.update(batch.ids)\n"
        "stream.close()\n"
        "print(*ids)\n"
        "stream = batches(small_plan(), SOURCES, start_step=2, workers=2)\n"
        "print(*[digest(batch) for batch, _ in zip(stream, range(6))])\n"
        "stream.close()\n"
        "assert sys.modules['__main__'].__spec__ is None\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    ids, digests = found.stdout.splitlines()
    processes = {word.split(":")[0] for word in ids.split()}
    assert len(processes) == 2
    assert {word.split(":")[1] for word in ids.split()} == {"none"}, ids
    assert digests.split() == [digest(batch) for batch in take(6, 2)]
    assert "jax" not in found.stderr.lower(), found.stderr


class SpySource(SmallSource):
    """Samples whose id says which process read them and what it had imported."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        heavy = sorted({"jax", "jaxlib", "flax", "torch", "tensorflow"} & set(sys.modules))
        sample.id = f"{os.getpid()}:{'+'.join(heavy) or 'none'}:{index}"
        return sample


def rows_of_host(host: int, hosts: int) -> dict[str, range]:
    """The rows of a step that one of several hosts reads."""
    each = 8 // hosts
    return {name: range(host * each, (host + 1) * each) for name in ("fields", "coasts")}


def test_hosts_read_their_own_rows_only_and_together_make_the_global_batch() -> None:
    whole = take(6)
    for hosts in (2, 4, 8):
        shares = []
        for host in range(hosts):
            sources = {"fields": SmallSource(FIELDS, 1100), "coasts": SmallSource(COASTS, 1200)}
            shares.append(take(6, sources=sources, local_rows=rows_of_host(host, hosts)))
        for step, batch in enumerate(whole):
            parts = [share[step] for share in shares]
            for found, expected in zip(joined(parts), flat(batch.rows), strict=True):
                np.testing.assert_array_equal(found, expected)
            assert list(dict.fromkeys(name for part in parts for name in part.ids)) == batch.ids
    assert (
        len(sources["fields"].asked) < len([n for batch in whole for n in batch.ids]) / 4
    )  # the last of eight hosts


def test_resume_on_4_2_and_8_hosts_in_a_mixture_equals_the_uninterrupted_run() -> None:
    whole = take(15)
    assert {batch.corpus for batch in whole} == {"fields", "coasts"}
    at = 0
    for hosts, count in ((4, 4), (2, 5), (8, 6)):
        shares = [take(count, at, local_rows=rows_of_host(host, hosts)) for host in range(hosts)]
        for k in range(count):
            for found, expected in zip(joined([s[k] for s in shares]), flat(whole[at + k].rows), strict=True):
                np.testing.assert_array_equal(found, expected)
        at += count


def test_a_sample_is_read_once_per_step_however_many_views_it_has() -> None:
    source = SmallSource(FIELDS, 1100)
    planned = PlannedCorpus(FIELDS, 1100, FIELDS_GSDS)
    plan = Plan([planned], seed=1, rows_per_step=4, recipe=REFERENCE, views_per_sample=3)
    batch = StepSource(plan, {"fields": source}).step(0)
    assert len(source.asked) == len(set(source.asked)) == len(batch.ids)
    assert batch.rows.decoder_segment_RxL.max(axis=1).sum() == 3 * len(source.asked)


def test_bad_samples_are_left_out_named_and_do_not_touch_the_others() -> None:
    good = take(8)
    met = [int(name.split("-")[1]) for batch in good for name in batch.ids if batch.corpus == "fields"]
    broken, empty = (met[0], met[7], met[-1]), met[20]
    sources = {
        "fields": SmallSource(FIELDS, 1100, broken=broken, empty=(empty,)),
        "coasts": SmallSource(COASTS, 1200),
    }
    found = take(8, sources=sources)
    bad = [entry for batch in found for entry in batch.bad]
    assert {entry["sample"] for entry in bad} == {*broken, empty}
    assert all(entry["corpus"] == "fields" for entry in bad)
    causes = {entry["sample"]: entry["cause"] for entry in bad}
    assert causes[broken[0]] == f"OSError: fields-{broken[0]}.tif is truncated"
    assert causes[empty].startswith("no valid pixel in ")
    for before, after in zip(good, found, strict=True):
        left_out = {f"fields-{entry['sample']}" for entry in after.bad}
        assert after.ids == [name for name in before.ids if name not in left_out]
        assert all(entry["step"] == after.step for entry in after.bad)
        same = [(a == b).all() for a, b in zip(flat(before.rows), flat(after.rows), strict=True)]
        assert all(same) == (not left_out)
        views = [int((batch.rows.decoder_segment_RxL.max(axis=1)).sum()) for batch in (before, after)]
        assert views[0] - views[1] == len(left_out)


def test_images_unlike_their_modality_are_bad_samples() -> None:
    class Changing(SmallSource):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index == 3:
                sample.images["aerial"].values = sample.images["aerial"].values.astype(np.uint16)
            return sample

    plan = Plan([PlannedCorpus(FIELDS, 10, (4.0,))], seed=1, rows_per_step=4, recipe=REFERENCE)
    source = StepSource(plan, {"fields": Changing(FIELDS, 10)})
    causes = {entry["cause"] for step in range(8) for entry in source.step(step).bad if entry["sample"] == 3}
    assert any("sample 'fields-3', aerial: found uint16 values" in cause for cause in causes)


def test_only_the_modalities_of_a_samples_views_are_asked_for() -> None:
    class Selective(SmallSource):
        def read(self, index: int, modalities: set[str]) -> Sample:
            sample = self[index]
            sample.images = {name: image for name, image in sample.images.items() if name in modalities}
            return sample

    steps = {
        kind: StepSource(small_plan(), {**SOURCES, "fields": kind(FIELDS, 1100)})
        for kind in (SmallSource, Selective)
    }
    for step in range(4):
        assert digest(steps[SmallSource].step(step)) == digest(steps[Selective].step(step))
    assert steps[Selective].bytes_read < steps[SmallSource].bytes_read


def test_statistics_of_the_sample_are_used() -> None:
    class Variants(SmallSource):
        def statistics(self, sample: Sample, modality: str) -> tuple[np.ndarray, np.ndarray]:
            bands = len(self.spec.modality(modality).sensor.bands)
            return np.full(bands, 7.0), np.full(bands, 2.0)

    plan = Plan([PlannedCorpus(FIELDS, 10, (4.0,))], seed=1, rows_per_step=4, recipe=REFERENCE)
    images = StepSource(plan, {"fields": Variants(FIELDS, 10)}).step(0).rows.images["aerial"]
    assert (images.mean_RxSxC[images.view_RxS > 0] == 7).all()
    assert (images.std_RxSxC[images.view_RxS > 0] == 2).all()


def test_temporal_dropout_is_for_training() -> None:
    counts = []
    for training in (True, False):
        steps = StepSource(small_plan(), SOURCES, training=training)
        batch = next(steps.step(s) for s in range(20) if steps.plan.corpus(s) == "fields")
        counts.append((batch.rows.images["s1"].frames_RxSxT > 0).sum())
    assert counts[0] < counts[1]


def test_killed_workers_are_started_again_at_the_step_they_owe(capfd: pytest.CaptureFixture[str]) -> None:
    expected = [digest(batch) for batch in take(6)]
    found = batches(small_plan(), SOURCES, workers=2, prefetch=1)
    with contextlib.closing(found):
        got = [digest(next(found)) for _ in range(2)]
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        got += [digest(next(found)) for _ in range(4)]
    assert got == expected
    assert "Starting the data workers again at step" in capfd.readouterr().err


def test_workers_that_keep_dying_are_an_error() -> None:
    sources = {"fields": DeadlySource(FIELDS, 1100), "coasts": DeadlySource(COASTS, 1200)}
    with pytest.raises(UserError, match="die again and again at step 0"):
        next(batches(small_plan(), sources, workers=1, prefetch=1))


@pytest.mark.parametrize(
    ("sources", "options", "sentence"),
    [
        ({"fields": SOURCES["fields"]}, {}, "no samples for corpus 'coasts'"),
        (
            {**SOURCES, "coasts": SmallSource(COASTS, 1199)},
            {},
            "has 1199 samples, the plan was made for 1200",
        ),
        (SOURCES, {"local_rows": {"fields": (7, 8)}}, r"corpus fields: rows \(7, 8\) of a step of 8 rows"),
    ],
)
def test_wrong_sources_and_hosts_are_refused(sources, options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        StepSource(small_plan(), sources, **options)


def test_measure_reports_speed_and_real_tokens() -> None:
    found = measure(small_plan(), SOURCES, seconds=0.3)
    assert found["samples_per_s"] > 10
    assert found["megabytes_per_s"] > 0
    assert 0.3 < found["real_decoder"] <= 1
    assert 0.3 < found["real_encoder"] <= 1
    assert found["share_read"] + found["share_plan"] + found["share_pack"] < 1.01
