"""The benchmark's figures are those of the configuration's own pipeline."""

import re

import numpy as np
import pytest

from ramen_jax import config
from ramen_jax.benchmarks import step as bench
from ramen_jax.console import UserError
from ramen_jax.training import experiment
from ramen_jax.training.clock import Clock


def test_data_only_prints_real_tokens_speed_and_waiting(tmp_path, repository):
    options = config.load(f"{repository}/configs/tiny.py:quicktest")
    name = options.corpora[0].name
    lines = dict(
        re.split(r"  +", line, maxsplit=1)
        for line in bench.data_table(options, str(tmp_path), name, 0.2, 0.1)
    )
    assert lines["corpus"].startswith(name)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", lines["real tokens"])]
    source = experiment.open_corpus(options, options.corpora[0], tmp_path)
    expected = experiment.make_plan(options, {name: source}, options.seed).real_token_share(name)
    np.testing.assert_allclose(shares, [100 * expected["decoder"], 100 * expected["encoder"]], atol=0.051)
    assert re.match(r"[\d,.]+ samples/s, [\d,.]+ MB/s of pixels, [\d,]+ tokens/s", lines["one worker"])
    assert 0 <= float(re.match(r"([\d.]+)%", lines["waiting for data"])[1]) < 100
    assert lines["bad samples"] == "0"


def test_data_only_says_what_is_missing(tmp_path, repository):
    options = config.load(repository / "configs/base.py")
    with pytest.raises(UserError, match="no corpus 'flair' in this configuration"):
        next(bench.data_table(options, str(tmp_path), "flair", 1, 1))
    with pytest.raises(UserError, match=r"needs --workdir, or --config\.corpora\.mmearth\.prepared=DIR"):
        next(bench.data_table(options, "", "mmearth", 1, 1))


def test_the_clock_tells_waiting_from_working(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ramen_jax.training.clock.time.monotonic", lambda: now[0])

    def slow():
        for batch in range(6):
            now[0] += 3.0
            yield batch

    clock = Clock(1, "cpu")
    for _ in clock.waiting(slow()):
        now[0] += 1.0
        clock.tick(1, 1, 1)
    assert clock.rates()["data_wait_share"] == 0.75
    assert clock.rates()["step_seconds"] == 4.0
