"""The step of the real model: golden numbers, micro-batches, devices, the schedule, what is compiled."""

import json
import math
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.training import loop, optimizer
from ramen_jax.training.program import Inputs, Program
from tests.training import real, toy

# One step at seed 42 in float32 on CPU, rows of 289 tokens: long enough for attention in blocks. A change that moves
# these is a change of the numbers of a training.
GOLDEN = {
    "loss": 21.014839,
    "loss/dem": 5.830400,
    "loss/s1": 15.184438,
    "gradient_norm": 339.8208,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def one_batch():
    return real.summary(*real.train("mmearth_small", real.config()))


def test_one_step_gives_the_golden_numbers(one_batch):
    first = one_batch["history"][0]
    for name, value in GOLDEN.items():
        assert first[name] == pytest.approx(value, rel=1e-4), name


# These shift what a BatchNorm on batch statistics then centres: their gradient is zero, and Adam makes steps of the
# rounding noise.
NOISE = re.compile(r"encoder/ltae/(group_bias|(input|key|layers/\d)/bias)$")


def close(found, expected, tolerance):
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        for name in theirs:
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=1e-7), name
    for name, norm in expected["norms"].items():
        if NOISE.match(name):
            continue
        assert found["norms"][name] == pytest.approx(norm, rel=tolerance, abs=1e-6), name


def test_micro_batches_give_the_gradient_of_the_whole_batch(one_batch):
    """No series here: BatchNorm, which alone sees micro-batches, is not in the way."""
    close(real.summary(*real.train("mmearth_small", real.config("optimizer.accumulate=4"))), one_batch, 2e-5)


def test_eight_devices_give_what_one_gives(repository):
    """Rows over data and fsdp, parameters over fsdp and tensor; a series, whose BatchNorm counts all devices."""
    axes = ("sharding.data=2", "sharding.fsdp=2", "sharding.tensor=2")
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.real", "flairhub_small", *axes],
        cwd=repository,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    many = json.loads(done.stdout.splitlines()[-1])
    assert many["devices"] == 8
    assert many["split"] > 10
    assert many["held"] < 0.5 * many["whole"]  # (mutant: a state that is created whole on every device)
    close(many, real.summary(*real.train("flairhub_small", real.config())), 2e-5)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="data=1, fsdp=3, tensor=1, but there are 1 devices"):
        make_mesh(toy.config("sharding.data=1", "sharding.fsdp=3"))


def test_rows_that_the_micro_batches_do_not_divide_are_refused_for_the_corpus_that_has_them():
    """Checked per corpus, whose rows may differ from the default. (Mutant: only data.rows_per_step is looked at.)"""
    settings = toy.config("optimizer.accumulate=4")
    inputs = {"odd": Inputs({}, toy.rows_of(0, rows=6))}
    with pytest.raises(
        UserError, match=r"corpus odd: 6 rows per step .* expected a multiple of 4, e\.g\. .* = 8"
    ):
        Program(settings, toy.ToyModel(), inputs, make_mesh(settings), 10, 10, logical_axes=toy.logical_axes)


def test_another_shape_of_rows_is_an_error_not_a_second_program(tmp_path):
    def uneven(start):
        for batch in toy.batches(start):
            yield batch if batch.step < 3 else batch._replace(rows=toy.rows_of(3, rows=16))

    with pytest.raises(ValueError, match=r"rows of shape \(16, 16\), the program is compiled for \(8, 16\)"):
        loop.run(toy.job()._replace(batches=uneven), tmp_path)


def test_the_schedule_per_epoch_is_the_official_one():
    """linspace(start, peak, 20) then the cosine of the closed form, constant within each epoch."""
    config = toy.config("optimizer.per=epoch", "optimizer.learning_rate=1.5e-4")
    rate = optimizer.schedule(config, steps=700, steps_per_epoch=7)
    for epoch in (0, 1, 10, 19, 20, 21, 60, 99):
        if epoch < 20:
            expected = 1e-5 + epoch * (1.5e-4 - 1e-5) / 19
        else:
            expected = 1e-6 + 0.5 * (1.5e-4 - 1e-6) * (1 + math.cos(math.pi * (epoch - 20) / 80))
        for step in (7 * epoch, 7 * epoch + 6):
            assert float(rate(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)


def test_the_schedule_per_step_rises_and_falls_without_jumps():
    config = toy.config("optimizer.learning_rate=1.5e-4")
    rate = optimizer.schedule(config, steps=1000, steps_per_epoch=10)
    values = np.array([float(rate(jnp.int32(step))) for step in range(0, 1001, 5)])
    assert values[0] == pytest.approx(1e-5)
    assert values.argmax() == 40
    assert values.max() == pytest.approx(1.5e-4)
    assert values[-1] == pytest.approx(1e-6, rel=1e-3)
    assert np.abs(np.diff(values)).max() < 4e-6
