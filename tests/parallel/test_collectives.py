"""What the devices of a mesh tell each other in the real step, read from the compiled program of eight."""

import os
import subprocess
import sys

PROGRAM = """
import jax
from ramen_jax.benchmarks import hlo
from ramen_jax.benchmarks.step import random_views, with_statistics
from ramen_jax.config import recipe_of
from ramen_jax.earth.places import corpus_spec
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.rows.packing import exact_capacity
from ramen_jax.training import experiment
from ramen_jax.training.program import Program
from tests.training import real

name = "mmearth_small"
config = real.config()
spec = with_statistics(corpus_spec(name, modalities=real.MODALITIES[name]))
views = random_views(spec, 8, real.GSD[name], 0, list(spec.declared))
capacity = exact_capacity(spec, views, recipe_of(config))
inputs = {spec.name: experiment.inputs_of(spec, capacity)}
program = Program(config, experiment.ramen(config), inputs, make_mesh(config), 10, 5)
work = hlo.read(program.lower_step(name).compile().as_text())
parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params))
print(sorted({kind for kind, _ in work.collectives}), work.of_kind("all-reduce").bytes, 4 * parameters)
"""


def test_a_data_parallel_step_sums_gradients_and_gathers_nothing(repository):
    """Gradients, losses and counts are summed, once each; rows stay where they are.

    (Mutant: the decoder's scatter with row numbers in its index, which gathers the pixels of all rows.)
    """
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=repository,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, _, sizes = done.stdout.strip().rpartition("] ")
    summed, gradients = map(float, sizes.split())
    assert kinds + "]" == "['all-reduce']"
    assert 0 < summed < 1.1 * gradients + 4096  # parts for series have no gradient here
