"""The limit on samples that cannot be used: of the whole run, and of its newest part."""

import json

import numpy as np
import pytest

from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.training.bad_samples import BadSamples

SIZE = 5  # samples of a step


def batch(step: int, bad: int) -> StepBatch:
    lost = [
        {"step": step, "sample": number, "id": f"lost{step}", "cause": "all nodata"} for number in range(bad)
    ]
    return StepBatch(step, "toy", None, [f"place{step}_{n}" for n in range(SIZE - bad)], lost, {})


def run(samples: BadSamples, bad: list[int]) -> tuple[int, str]:
    """(steps done, why the run stopped)."""
    for step, count in enumerate(bad):
        told = samples.count(*samples.listed(batch(step, count)))
        if told:
            return step, told
    return len(bad), ""


def test_a_disk_that_begins_to_fail_late_stops_the_run(tmp_path):
    """8 % bad samples after 350 good steps. (Mutant: only the share of the whole past counts.)"""
    samples = BadSamples(tmp_path / "bad.jsonl", 0.01, {})
    failing = [0, 1] * 4 + [0, 0, 1, 0]  # 8.3 % of 60 samples
    step, told = run(samples, [0] * 350 + failing * 10)
    assert 350 < step < 410
    assert "newest samples" in told
    assert samples.bad / samples.seen < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_chance_stops_no_run_that_is_within_the_limit(tmp_path, seed):
    rng = np.random.default_rng(seed)
    samples = BadSamples(tmp_path / "bad.jsonl", 0.01, {})
    step, told = run(samples, rng.binomial(SIZE, 0.005, 20_000).tolist())
    assert told == ""
    assert step == 20_000


def test_the_first_ones_are_free_and_the_count_survives_an_interruption(tmp_path):
    samples = BadSamples(tmp_path / "bad.jsonl", 0.0, {})
    assert run(samples, [1, 1, 1]) == (3, "")
    again = BadSamples(tmp_path / "bad.jsonl", 0.0, samples.saved())
    assert "4 of 20 samples (20.0%)" in again.count(*again.listed(batch(3, 1)))
    assert again.summary().startswith("4 of 20 samples (20.0%) could not be used and were left out")
    assert len([json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]) == 4
