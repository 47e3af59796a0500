"""A toy with the interfaces of the model and the data plane: everything around the step is tested in seconds.

Run as a program, it trains in a workdir: `python -m tests.training.toy WORKDIR [key=value ...]`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ramen_jax import config as configuration
from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.sensors import sensor
from ramen_jax.training import loop
from ramen_jax.training.step import describe

WIDTH = 16


class Statistic(nnx.Variable):
    """A running mean."""


class ToyRows(NamedTuple):
    values_RxD: np.ndarray
    decoder_segment_RxL: np.ndarray


class ToyModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.out = nnx.List([nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)])
        self.mean = Statistic(jnp.zeros((WIDTH,)))

    def loss(self, rows, sensors, counts, *, train=True, key=None):
        values_RxD = rows.values_RxD
        noisy_RxD = values_RxD
        if train:
            noisy_RxD = values_RxD * jax.random.bernoulli(key, 0.9, values_RxD.shape)
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * jnp.mean(values_RxD, axis=0)
        predicted_RxD = self.out[0](jax.nn.gelu(self.hidden(noisy_RxD)))
        total = jnp.sum(jnp.square(predicted_RxD - values_RxD)) / counts["s2"]
        return total, {"loss/s2": total}


def counts(rows):
    return {"s2": jnp.float32(rows.values_RxD.size)}


def logical_axes(path, ndim):
    if ndim < 2:
        return (None,) * ndim
    return ("embed", "mlp") if path[0] == "hidden" else ("mlp", "embed")


def rows_of(step: int, rows: int = 8) -> ToyRows:
    values = np.random.default_rng(step).normal(size=(rows, WIDTH)).astype(np.float32)
    return ToyRows(values, np.ones((rows, 3), np.int32))


def batches(start: int, broken: int = -1, bad: tuple[int, ...] = ()) -> Iterator[StepBatch]:
    step = start
    while True:
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        rows = rows_of(step)
        if step == broken:
            rows.values_RxD[2, 3] = np.nan
        lost = [{"id": f"lost{step}", "reason": "all nodata"}] if step in bad else []
        yield StepBatch(step, "toy", rows, [f"place{step}_{row}" for row in range(8)], lost, {})
        step += 1


def config(*overrides: str):
    value = configuration.default()
    value.data.rows_per_step = 8
    value.checkpoint.every = 5
    value.logging.tensorboard = False
    value.optimizer.learning_rate = 1e-2
    return configuration.finish(value, overrides)


def model():
    return describe(lambda: ToyModel(nnx.Rngs(0)), Statistic, counts, logical_axes)


def job(steps: int = 30, **options) -> loop.Job:
    return loop.Job(
        model=model(),
        sensors={"toy": {"s2": sensor("sentinel2_l2a")}},
        fingerprints={"toy": "abc"},
        plan={"seed": 0, "corpora": {"toy": {"rows_per_step": 8}}},
        batches=lambda start: batches(start, **options),
        steps=steps,
        steps_per_epoch=10,
    )


if __name__ == "__main__":
    outcome = loop.run(config(*sys.argv[2:]), Path(sys.argv[1]), job())
    print(f"done {outcome.step}")
