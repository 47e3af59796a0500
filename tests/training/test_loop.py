"""The loop with a toy model: interrupted equals uninterrupted, and everything that stops or must not stop a run."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax.console import UserError
from ramen_jax.training import checkpoint, loop, metrics
from tests.training import toy


def losses(workdir) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics.read(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    outcome = loop.run(toy.config(), workdir, toy.job())
    assert (outcome.step, outcome.complete) == (30, True)
    return losses(workdir)


def test_a_run_leaves_what_its_documentation_says(tmp_path, uninterrupted):
    assert [step for step, _ in uninterrupted] == list(range(30))
    assert uninterrupted[-1][1] < uninterrupted[0][1]
    config = toy.config("logging.tensorboard=true")
    loop.run(config, tmp_path, toy.job(steps=6))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "config.json",
        "runs.jsonl",
        "parameters.txt",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert json.loads((tmp_path / "config.json").read_text()) == configuration.plain(config)
    assert "total" in (tmp_path / "parameters.txt").read_text()
    facts = json.loads((tmp_path / "runs.jsonl").read_text())
    assert facts["device_kind"] == jax.devices()[0].device_kind
    assert (tmp_path / "step_toy.stablehlo.gz").stat().st_size > 0
    line = metrics.read(tmp_path)[-1]
    assert line["tokens"] == 24
    assert line["views"] == 8
    assert line["samples_per_second"] > 0


def test_stopping_and_resuming_changes_no_bit(tmp_path, uninterrupted):
    """Stopped between checkpoints by another process, with lines written after the checkpoint (as a kill leaves)."""
    loop.run(toy.config("train.stop_at=7"), tmp_path, toy.job())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 123.0}\n{"step": 8, "lo')
    outcome = loop.run(toy.config(), tmp_path, toy.job())
    assert outcome.complete
    assert losses(tmp_path) == uninterrupted
    again = loop.run(toy.config(), tmp_path, toy.job())
    assert again.complete
    assert losses(tmp_path) == uninterrupted


def test_killed_at_three_random_points_changes_no_bit(tmp_path, repository, uninterrupted):
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), "checkpoint.every=3"]
    environment = {**os.environ, "TOY_SECONDS": "0.05"}
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    kills = sorted(rng.choice(np.arange(2, 27), size=3, replace=False).tolist())
    lines = tmp_path / "metrics.jsonl"
    for kill in kills:
        process = subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not lines.is_file() or f'"step": {kill}' not in lines.read_text():
            assert process.poll() is None, f"ended before step {kill} of {kills}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=repository, check=True, stdout=subprocess.DEVNULL)
    assert losses(tmp_path) == uninterrupted, f"killed after steps {kills}"


def test_core_seconds_survive_a_resume(tmp_path):
    spent = []
    for stop in (10, 20):
        loop.run(toy.config(f"train.stop_at={stop}"), tmp_path, toy.job())
        clock = checkpoint.load(tmp_path).meta["clock"]
        spent.append(clock["core_seconds"][jax.devices()[0].device_kind])
    assert 0 < spent[0] < spent[1]


def test_sigterm_saves_and_stops(tmp_path, uninterrupted):
    def with_signal(start):
        for batch in toy.batches(start):
            if batch.step == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    outcome = loop.run(toy.config(), tmp_path, toy.job()._replace(batches=with_signal))
    assert outcome.signalled
    assert not outcome.complete
    assert outcome.step in (12, 13)
    loop.run(toy.config(), tmp_path, toy.job())
    assert losses(tmp_path) == uninterrupted


def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_samples(tmp_path, uninterrupted):
    with pytest.raises(UserError, match=r"step 8 \(toy\).*place8_0.*skip_steps=8") as caught:
        loop.run(toy.config(), tmp_path, toy.job(broken=8))
    assert caught.value.code == 1
    report = json.loads((tmp_path / "not_finite_8_process0.json").read_text())
    assert report["samples"] == [f"place8_{row}" for row in range(8)]
    # The checkpoint is the state after step 7: with the sample repaired the run ends as one that never met it.
    assert (tmp_path / "checkpoints" / "8").is_dir()
    loop.run(toy.config(), tmp_path, toy.job())
    assert losses(tmp_path) == uninterrupted


def test_a_step_can_be_left_out(tmp_path):
    with pytest.raises(UserError):
        loop.run(toy.config(), tmp_path, toy.job(broken=8))
    outcome = loop.run(toy.config("train.skip_steps=8"), tmp_path, toy.job(broken=8))
    assert outcome.complete
    assert [step for step, _ in losses(tmp_path)] == [step for step in range(30) if step != 8]


def test_another_configuration_in_the_workdir_is_refused_with_the_difference(tmp_path):
    loop.run(toy.config(), tmp_path, toy.job(steps=2))
    with pytest.raises(UserError, match=r"optimizer\.beta1: 0\.9 -> 0\.8") as caught:
        loop.run(toy.config("optimizer.beta1=0.8"), tmp_path, toy.job(steps=2))
    assert caught.value.code == 2
    assert "checkpoint" not in str(caught.value)


def test_bad_samples_are_listed_and_too_many_stop_the_run(tmp_path):
    outcome = loop.run(toy.config(), tmp_path / "few", toy.job(bad=(3, 4)))
    assert outcome.complete
    listed = [json.loads(line) for line in (tmp_path / "few" / "bad_samples.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["lost3", "lost4"]
    with pytest.raises(
        UserError, match=r"samples \(.*%\) could not be used.*max_bad_share.*bad_samples\.jsonl"
    ):
        loop.run(toy.config(), tmp_path / "many", toy.job(bad=tuple(range(30))))


def test_validation_runs_on_its_schedule_and_ranks_checkpoints(tmp_path):
    job = toy.job(steps=20)._replace(validation=lambda: [next(toy.batches(1000)), next(toy.batches(1001))])
    loop.run(toy.config("validation.every=5"), tmp_path, job)
    found = {
        line["step"]: line["validation/loss"] for line in metrics.read(tmp_path) if "validation/loss" in line
    }
    assert sorted(found) == [4, 9, 14, 19]
    ranked = json.loads((tmp_path / "checkpoints" / "20" / "metrics" / "metrics").read_text())
    assert ranked == {"loss": found[19]}


def test_a_process_that_left_a_corrupt_configuration_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
        loop.run(toy.config(), tmp_path, toy.job())
