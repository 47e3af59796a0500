"""Impossible sizes are refused with what they would take and what there is."""

from __future__ import annotations

import pytest

from ramen_jax import limits
from ramen_jax.benchmarks.step import random_views
from ramen_jax.console import UserError
from ramen_jax.earth.places import corpus_spec


def test_the_machine_s_memory_is_a_sensible_number():
    assert 2**28 < limits.machine_memory() < 2**52


def test_what_does_not_fit_is_told_with_both_figures():
    limits.refuse_beyond_memory("this", 99, "use less", 100)
    with pytest.raises(
        UserError, match=r"this takes at least 3\.8 TiB of memory, the limit here is 100 bytes; use less"
    ):
        limits.refuse_beyond_memory("this", 3.8 * 2**40, "use less", 100)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (2**20, "1 MiB"), (1.5 * 2**50, "1.5 PiB")]
)
def test_bytes_are_written_for_people(count, text):
    assert limits.size(count) == text


@pytest.mark.parametrize(("count", "dates", "gsd"), [(1, 100_000_000, 10.0), (10**9, 1, 10.0)])
def test_bench_makes_no_images_that_fit_nowhere(count, dates, gsd):
    spec = corpus_spec("flairhub")
    names = [modality.name for modality in spec.as_declared()]
    with pytest.raises(
        UserError, match=r"pixel values and .* takes at least .* of memory, the limit here is"
    ):
        random_views(spec, count, gsd, dates, names)


def test_bench_refuses_an_impossible_target_gsd():
    spec = corpus_spec("mmearth")
    with pytest.raises(UserError, match="the limit is 64 cells per pixel"):
        random_views(spec, 1, 1e-6, 1, [spec.as_declared()[0].name])
