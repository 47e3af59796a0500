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

from ramen_jax import config as configuration
from ramen_jax.model.products import ANYWHERE
from ramen_jax.parallel.mesh import local_rows, make_mesh
from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.sensors import sensor
from ramen_jax.training import loop
from ramen_jax.training.program import Inputs, Program

WIDTH = 16


class ToyRows(NamedTuple):
    values_RxD: np.ndarray
    decoder_segment_RxL: np.ndarray


class ToyModel:
    """The functional face of the real model over two layers and a running mean."""

    def on(self, mesh, places=ANYWHERE):
        return self

    def init(self, key):
        keys = jax.random.split(key, 2)
        params = {
            "hidden": {"kernel": 0.25 * jax.random.normal(keys[0], (WIDTH, 4 * WIDTH))},
            "out": {"0": {"kernel": 0.125 * jax.random.normal(keys[1], (4 * WIDTH, WIDTH))}},
        }
        return params, {"mean": jnp.zeros(WIDTH)}

    def training_flops(self, rows):
        return 0.0

    def counts(self, rows):
        return {"s2": jnp.float32(rows.values_RxD.size)}

    def loss(self, params, statistics, rows, bands, counts, *, train, key=None):
        values_RxD = noisy_RxD = rows.values_RxD
        if train:
            noisy_RxD = values_RxD * jax.random.bernoulli(key, 0.9, values_RxD.shape)
            statistics = {"mean": 0.9 * statistics["mean"] + 0.1 * jnp.mean(values_RxD, axis=0)}
        hidden = jax.nn.gelu(noisy_RxD @ params["hidden"]["kernel"])
        error = jnp.square(hidden @ params["out"]["0"]["kernel"] - values_RxD)
        total = jnp.sum(error) / counts["s2"]
        return total, ({"loss/s2": total}, statistics)


def logical_axes(path, ndim):
    if ndim < 2:
        return (None,) * ndim
    return ("embed", "mlp") if path[0] == "hidden" else ("mlp", "embed")


def rows_of(step: int, rows: int = 8) -> ToyRows:
    values = np.random.default_rng(step).normal(size=(rows, WIDTH)).astype(np.float32)
    return ToyRows(values, np.ones((rows, 3), np.int32))


def batches(
    start: int, broken: int = -1, bad: tuple[int, ...] = (), rows_per_step: int = 8
) -> Iterator[StepBatch]:
    step = start
    while True:
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        rows = rows_of(step, rows_per_step)
        if step == broken:
            rows.values_RxD[2, 3] = np.nan
        lost = [{"id": f"lost{step}", "reason": "all nodata"}] if step in bad else []
        yield StepBatch(step, "toy", rows, [f"place{step}_{row}" for row in range(rows_per_step)], lost, {})
        step += 1


def _local(batch: StepBatch, mesh) -> StepBatch:
    """The rows that this process has to read."""
    numbers = list(local_rows(mesh, len(batch.ids)))
    rows = ToyRows(*(array[numbers] for array in batch.rows))
    return batch._replace(rows=rows, ids=[batch.ids[number] for number in numbers])


def config(*overrides: str):
    value = configuration.default()
    value.data.rows_per_step = 8
    value.checkpoint.every = 5
    value.logging.tensorboard = False
    value.optimizer.learning_rate = 1e-2
    return configuration.finish(value, overrides)


def job(settings=None, steps: int = 30, evaluators=(), **options) -> loop.Job:
    """A run of a configuration (the default one where none is given); `options` go to `batches`."""
    settings = settings or config()
    options.setdefault("rows_per_step", settings.data.rows_per_step)
    inputs = {"toy": Inputs({}, rows_of(0, settings.data.rows_per_step))}
    mesh = make_mesh(settings)
    program = Program(settings, ToyModel(), inputs, mesh, steps, 10, inputs, logical_axes=logical_axes)
    return loop.Job(
        program=program,
        identity={
            "sensors": {"toy": {"s2": sensor("sentinel2_l2a").to_dict()}},
            "fingerprints": {"toy": "abc"},
            "plan": {"seed": 0, "corpora": {"toy": {"rows_per_step": 8}}},
        },
        batches=lambda start: (_local(batch, mesh) for batch in batches(start, **options)),
        steps=steps,
        evaluators=evaluators,
    )


if __name__ == "__main__":
    outcome = loop.run(job(config(*sys.argv[2:])), Path(sys.argv[1]))
    print(f"done {outcome.step}")
