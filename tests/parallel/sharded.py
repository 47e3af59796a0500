"""The real model on eight devices against one: loss, gradients, and what the devices tell each other.

    python -m tests.parallel.sharded compare DTYPE MESH...      a JSON line per mesh, such as data=1,fsdp=4,tensor=2
    python -m tests.parallel.sharded collectives MESH...        of the whole step, as compiled
    python -m tests.parallel.sharded flatness                   of one device among four and among eight

Eight devices: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jax
import numpy as np

from ramen_jax import config as configuration
from ramen_jax.benchmarks import hlo
from ramen_jax.benchmarks.step import random_views, with_statistics
from ramen_jax.config import recipe_of
from ramen_jax.earth.places import corpus_spec
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.parallel.rules import BLOCKS, flat_names
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.training import experiment
from ramen_jax.training.program import Program

GEOMETRY, MODALITIES = "mmearth_small", ("dem", "s1")
LONG, SHORT = 10.0, 40.0  # target GSD: rows of 1,153 tokens and of 73
DEPTHS = {"encoder": 3, "decoder": 2}


def config(*overrides: str) -> Any:
    value = configuration.default()
    value.recipe = "fixed"
    value.model.update(embed_dim=64, depth=DEPTHS["encoder"], num_heads=8)
    value.model.update(decoder_embed_dim=32, decoder_depth=DEPTHS["decoder"], decoder_num_heads=8)
    value.data.rows_per_step = 8
    return configuration.finish(value, overrides)


def build(settings: Any, devices: list[Any], target_gsd: float) -> tuple[Program, Any]:
    """The program for these devices, and its rows."""
    spec = with_statistics(corpus_spec(GEOMETRY, modalities=MODALITIES))
    views = random_views(spec, settings.data.rows_per_step, target_gsd, 0, MODALITIES)
    recipe = recipe_of(settings)
    capacity = exact_capacity(spec, views, recipe)
    inputs = {spec.name: experiment.inputs_of(spec, capacity)}
    program = Program(settings, experiment.ramen(settings), inputs, make_mesh(settings, devices), 10, 5)
    return program, pack(spec, views, capacity, recipe)


def gradients(program: Program, rows: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the first parameters."""
    state, placed = program.create_state(), program.place(GEOMETRY, rows)
    bands = program.inputs["step"][GEOMETRY].bands

    def loss(params: Any) -> jax.Array:
        counts = program.model.counts(placed)
        params = program.for_compute(params)
        return program.model.loss(params, state.statistics, placed, bands, counts, train=True)[0]

    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params)
    value, grads = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(state.params)
    return float(value), {key: np.asarray(leaf, np.float64) for key, leaf in flat_names(grads).items()}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compare(dtype: str, meshes: list[str]) -> None:
    numbers = f"model.dtype={dtype}"
    loss, expected = gradients(*build(config(numbers), jax.devices()[:1], LONG))
    trained = [name for name, array in expected.items() if np.any(array)]
    for text in meshes:
        axes = [f"sharding.{axis}" for axis in text.split(",")]
        program, rows = build(config(numbers, *axes), jax.devices(), LONG)
        found_loss, found = gradients(program, rows)
        each = {name: apart(found[name], expected[name]) for name in trained}
        whole = [np.concatenate([tree[name].ravel() for name in trained]) for tree in (found, expected)]
        worst = max(each, key=lambda name: each[name])
        report = {
            "mesh": text,
            "length": int(rows.decoder_segment_RxL.shape[1]),
            "loss": abs(found_loss - loss) / abs(loss),
            "gradient": apart(*whole),
            "worst": [worst, each[worst]],
        }
        print(json.dumps(report), flush=True)


def collectives(meshes: list[str]) -> None:
    for text in meshes:
        axes = [f"sharding.{axis}" for axis in text.split(",")]
        program, rows = build(config(*axes), jax.devices(), SHORT)
        work = hlo.read(program.lower_step(GEOMETRY).compile().as_text())
        sizes = {name: leaf.size for name, leaf in flat_names(program.abstract.params).items()}
        blocks = {name: size for name, size in sizes.items() if BLOCKS in name}
        report = {
            "mesh": text,
            "types": types(config(*axes, "model.dtype=bfloat16")),
            "kinds": {
                kind: [found.count, found.repeated, found.bytes]
                for kind in hlo.COLLECTIVES
                if (found := work.of_kind(kind)).count
            },
            "kernels": sum(size for name, size in blocks.items() if name.endswith("kernel")),
            "vectors": sum(size for name, size in blocks.items() if not name.endswith("kernel")),
            "tokens": [int(rows.encoder_segment_RxE.size), int(rows.decoder_segment_RxL.size)],
            "parameters": sum(sizes.values()),
        }
        print(json.dumps(report), flush=True)


def types(settings: Any) -> dict[str, list[str]]:
    """The numbers that the products of the blocks let travel, as traced: a CPU's compiler widens those of sums."""
    text = build(settings, jax.devices(), SHORT)[0].lower_step(GEOMETRY).as_text()
    operation = r'"stablehlo\.(\w+)"(?:(?!"stablehlo).)*? : \(tensor<(?:[\dx]+x)?(\w+)>'
    found = re.findall(operation, text, re.DOTALL)
    kinds = ("all_gather", "all_reduce", "reduce_scatter")
    return {kind: sorted({element for name, element in found if name == kind}) for kind in kinds}


def flatness() -> None:
    """The work of one device at two rows each, on four and on eight devices."""
    for devices in (4, 8):
        settings = config(f"data.rows_per_step={2 * devices}", f"sharding.data={devices}")
        program, _ = build(settings, jax.devices()[:devices], LONG)
        work = hlo.read(program.lower_step(GEOMETRY).compile().as_text())
        summed = work.of_kind("all-reduce")
        print(json.dumps([work.traffic, work.rounds, summed.count, summed.bytes, len(work.collectives)]))


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "compare":
        compare(rest[0], rest[1:])
    elif mode == "collectives":
        collectives(rest)
    else:
        flatness()
