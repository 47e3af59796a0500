"""The real step on a very small model and places of the procedural Earth.

As a program, `python -m tests.training.real GEOMETRY [key=value ...]`, it prints losses and norms of the parameters.
Devices are those of the process: XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight.
"""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from ramen_jax import config as configuration
from ramen_jax.benchmarks.step import random_views, with_statistics
from ramen_jax.config import recipe_of
from ramen_jax.earth.places import corpus_spec
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.parallel.rules import flat_names
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.training import experiment
from ramen_jax.training.program import Program

MODALITIES = {"flairhub_small": ("dem", "s2"), "mmearth_small": ("dem", "s1")}
GSD = {"flairhub_small": 4.0, "mmearth_small": 20.0}


def config(*overrides: str):
    value = configuration.default()
    configuration.apply_size(value, "tiny")
    value.model.update(embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    value.model.decoder_num_heads = 2
    value.model.remat = "none"
    value.data.rows_per_step = 8
    value.recipe = "fixed"
    value.optimizer.learning_rate = value.optimizer.warmup_from = 1e-3
    return configuration.finish(value, overrides)


def train(geometry: str, config, steps: int = 2):
    """(metrics of every step, the last state) of `steps` steps on the same batch."""
    spec = with_statistics(corpus_spec(geometry, max_dates=3, modalities=MODALITIES[geometry]))
    names = list(spec.declared)
    views = random_views(spec, config.data.rows_per_step, GSD[geometry], 0, names)
    for index in (1, 4):  # rows that differ: a view of one modality leaves padding and empty slots
        view = views[index][0]
        view.modalities = view.modalities[:1]
        view.noise = view.noise[: len(view.noise) // 2]
    recipe = recipe_of(config)
    capacity = exact_capacity(spec, views, recipe)
    rows = pack(spec, views, capacity, recipe)
    inputs = {spec.name: experiment.inputs_of(spec, capacity)}
    program = Program(config, experiment.ramen(config), inputs, make_mesh(config), 10, 5)
    state, compiled, placed = program.create_state(), program.step(spec.name), program.place(spec.name, rows)
    history = []
    for _ in range(steps):
        state, metrics = compiled(state, placed)
        history.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    return history, state


def summary(history, state) -> dict:
    """What two runs are compared by."""
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    norms = {
        name: float(np.linalg.norm(np.asarray(jax.device_get(leaf), np.float64)))
        for name, leaf in flat_names(state.params).items()
    }
    leaves = jax.tree.leaves(state.params)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    whole = sum(leaf.size for leaf in leaves)
    sizes = {"held": held, "whole": whole, "split": len(split), "devices": jax.device_count()}
    return {"history": history, "norms": norms, **sizes}


if __name__ == "__main__":
    print(json.dumps(summary(*train(sys.argv[1], config(*sys.argv[2:])))))
