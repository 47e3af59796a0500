"""One decoder step on one device and on four: the same update."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np, optax
from jax.sharding import SingleDeviceSharding
from ramen_jax.evaluation.fitting import Fit
from ramen_jax.evaluation.pangaea import decoders, losses

assert jax.device_count() == 4
decoder = decoders.build("seg_upernet", (8,) * 4, 3, channels=8)
spread, alone = (
    Fit(decoder, losses.build("cross_entropy", ignore_index=-1), optax.sgd(0.1), 4, 0) for _ in range(2)
)
alone.split = alone.whole = SingleDeviceSharding(jax.devices()[0])
rng = np.random.default_rng(0)
states, found = [spread.init({}), alone.init({})], []
for number in range(3):
    levels = tuple(rng.normal(size=(4, 4, 4, 8)).astype(np.float32) for _ in range(4))
    labels = rng.integers(0, 3, (4, 16, 16)).astype(np.int32)
    labels[0] = -1  # one device sees no truth at all
    labels[1, :9] = -1
    for i, fit in enumerate((spread, alone)):
        states[i], loss = fit.step(states[i], levels, labels, number, [])
        found.append(loss)
assert len(spread.split.device_set) == 4 and spread.traced == alone.traced == {"step": 1, "decode": 0}
np.testing.assert_allclose(found[::2], found[1::2], rtol=2e-6)
for one, other in zip(*(jax.tree.leaves((s.params, s.statistics)) for s in states), strict=True):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-4, atol=1e-5)
moved = np.mean([abs(a - b).mean() for a, b in zip(
    jax.tree.leaves(jax.device_get(states[0].params)), jax.tree.leaves(jax.device_get(spread.init({}).params)))])
assert moved > 1e-3
"""


def test_four_devices_make_the_update_of_one(repository):
    """BatchNorm sees the whole batch, and the loss is the mean over its counted pixels, wherever they lie.

    (Mutant: a mean of the devices' means, which differ here, for one device has no truth.)
    """
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=repository,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
