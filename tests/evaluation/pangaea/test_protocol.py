"""The protocol, its schedule, and tiles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea import optimization, protocol
from ramen_jax.evaluation.pangaea.tiling import Tiles, origins


def test_steps_and_validations_of_the_published_protocol() -> None:
    rules = protocol.by_name("published")
    assert rules.steps(486) == 60 * 80  # 486 burn scars, batch 8, the last 6 dropped
    assert rules.steps(7, replicate=2) == 80
    assert rules.steps(80, classification=True) == 500
    assert sum(rules.validates(epoch) for epoch in range(rules.epochs)) == 16
    assert rules.validates(0)
    assert rules.selection("regression") == "MSE"


def test_the_two_versions_differ_in_what_is_documented() -> None:
    """Every difference is a rule of data, encoder or scores: training itself is the same."""
    found = protocol.differences()
    assert found["metrics"] == ("published", "corrected")
    assert found["spacenet7_gsd"] == (40.0, 4.0)
    assert not {"seed", "epochs", "batch_size", "learning_rate", "weight_decay", "milestones"} & set(found)
    fields = [field.name for field in dataclasses.fields(protocol.Protocol)]
    assert [name for name in fields[1:] if f"{name}" not in str(protocol.Protocol.__doc__)] == []
    with pytest.raises(UserError, match='did you mean "corrected"'):
        protocol.by_name("correct")


@pytest.mark.parametrize("steps", [1, 2, 10, 15, 4800])
def test_the_schedule_multiplies_at_its_milestones(steps: int) -> None:
    rate = jax.jit(optimization.schedule(protocol.PUBLISHED, steps))
    for step in {
        0,
        int(0.6 * steps) - 1,
        int(0.6 * steps),
        int(0.9 * steps) - 1,
        int(0.9 * steps),
        steps - 1,
    }:
        passed = sum(max(step, 0) >= int(steps * share) for share in (0.6, 0.9))
        assert float(rate(max(step, 0))) == np.float32((1e-4, 1e-5, 1e-6)[passed])


def test_decay_reaches_every_parameter() -> None:
    """Without a gradient AdamW only decays, biases too: by learning rate times decay."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = optimization.optimizer(protocol.PUBLISHED, steps=100)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -1e-4 * 0.05, rtol=1e-6)


def test_published_origins() -> None:
    assert origins(512, 120) == (0, 98, 196, 294, 392)
    assert origins(256, 224) == (0, 32)
    assert origins(64, 64) == (0,)
    # Halves go to the even pixel: 2.5 -> 2, 7.5 -> 8.
    assert origins(15, 10) == (0, 5)
    assert origins(25, 10) == (0, 8, 15)
    assert origins(35, 12) == (0, 12, 23)
    with pytest.raises(UserError, match="100 pixels is smaller than the tile of 120"):
        origins(100, 120)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(4, 40), width=st.integers(4, 40), side=st.integers(2, 12))
def test_tiles_cover_and_return_the_image(height: int, width: int, side: int) -> None:
    """Merged tiles of an image are the image, whatever its shape."""
    side = min(side, height, width)
    tiles = Tiles.of(height, width, side)
    image = np.random.default_rng(0).integers(0, 99, size=(1, 2, height, width)).astype(np.float32)
    cut = tiles.cut(image)
    assert len(cut) == len(tiles) == len(tiles.corners)
    merged = tiles.merge(jnp.asarray(np.moveaxis(np.stack(cut), 2, -1)))
    np.testing.assert_allclose(merged, np.moveaxis(image, 1, -1), rtol=1e-6)


def test_the_published_merge_is_right_on_square_images_only() -> None:
    def merged(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        tiles = Tiles.of(height, width, 4)
        image = np.arange(height * width, dtype=np.float32).reshape(1, 1, height, width)
        logits = jnp.asarray(np.moveaxis(np.stack(tiles.cut(image)), 2, -1))
        return np.asarray(tiles.merge(logits, published=True)), np.moveaxis(image, 1, -1)

    np.testing.assert_array_equal(*merged(8, 8))
    found, image = merged(8, 12)
    np.testing.assert_array_equal(found[:, :4], image[:, :4])  # the first row of tiles is right
    np.testing.assert_array_equal(found[:, 4:, :4], image[:, :4, 8:])  # row 1 begins with tile 2 instead of 3
    with pytest.raises(UserError, match="taller than wide"):
        merged(12, 8)
