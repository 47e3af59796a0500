"""Packing through the model: it changes no loss, no gradient, no statistic, and compiles once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen, Tree
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import FRAME_NONE, Rows
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.pipeline import StepSource
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.rows.views import PackedView, view_grid
from tests.rows.small_corpora import FIELDS, FIELDS_GSDS, SmallSource, random_sample

# Gradients with respect to pixels need floats; three modalities compile faster than four.
FLOATS = dataclasses.replace(
    FIELDS,
    modalities=tuple(dataclasses.replace(m, dtype="float32") for m in FIELDS.modalities if m.name != "dem"),
)
BANDS = {m.name: m.sensor.bands for m in FLOATS.modalities}
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # compiles, not runs, fast
# The zero frames of the reference depend on the neighbours: that is what the trap `time_mask` is.
REFERENCE = Recipe.named("reference", time_mask="fixed", ltae_dropout=0.0)
FIXED = Recipe.named("fixed")
DRAWS = [  # (target GSD, kept modalities) of views of uneven length; two rows when packed
    [(4.0, ("s2", "aerial")), (2.5, ("aerial",)), (8.0, ("s1", "aerial", "s2"))],
    [(3.0, ("aerial", "s1", "s2")), (5.0, ("s1",))],
]


def make_model(recipe: Recipe) -> tuple[Ramen, Tree, Tree]:
    """A small model, filled with noise (initialising operation by operation takes a minute)."""
    architecture = Architecture(
        embed_dim=32,
        depth=1,
        num_heads=2,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
        remat="none",
    )
    ramen = Ramen(architecture, recipe)
    rng = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.3 * np.abs(rng.standard_normal(shape.shape)), shape.dtype)

    params, statistics = ramen.shapes
    return ramen, jax.tree.map(lambda s: fill(s) - 0.15, params), jax.tree.map(fill, statistics)


def views() -> list[list[PackedView]]:
    rows, number = [], 0
    for draws in DRAWS:
        rows.append([])
        for gsd, modalities in draws:
            number += 1
            grid = view_grid(FLOATS, gsd)
            noise = np.random.default_rng(number).random(grid[0] * grid[1] * len(modalities))
            rows[-1].append(PackedView(random_sample(FLOATS, number), gsd, modalities, noise))
    return rows


def packed(rows: list[list[PackedView]], recipe: Recipe) -> Rows:
    """The rows and, up to five, empty ones: views packed or alone have the same shapes, with different padding."""
    capacity = exact_capacity(FLOATS, views(), recipe)
    loose = {
        key: tuple(n + 2 for n in value) if isinstance(value, tuple) else value + 2
        for key, value in capacity.__dict__.items()
        if key not in ("rows", "pixels")
    }
    return pack(
        FLOATS,
        [*rows, *[[] for _ in range(5 - len(rows))]],
        dataclasses.replace(capacity, rows=5, **loose),
        recipe,
    )


def make_evaluate(recipe: Recipe) -> Callable[[Rows], tuple[float, Any, Any]]:
    """A function of rows: loss, gradients and new statistics, in training mode."""
    ramen, params, statistics = make_model(recipe)

    @partial(jax.jit, compiler_options=QUICK)
    def compute(params: Tree, statistics: Tree, rows: Rows) -> tuple:
        def loss(params: Tree) -> tuple[jax.Array, Tree]:
            total, (_, moved) = ramen.loss(params, statistics, rows, BANDS, ramen.counts(rows), train=True)
            return total, moved

        return jax.value_and_grad(loss, has_aux=True)(params)

    def evaluate(rows: Rows) -> tuple[float, Any, Any]:
        (total, new), gradients = compute(params, statistics, rows)
        return float(total), gradients, new

    return evaluate


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Relative to each array's norm; arrays that are rounding noise beside the whole are held to the whole's."""
    norms = [float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(expected)]
    floor = 1e-3 * float(np.linalg.norm(norms))
    paths = jax.tree_util.tree_flatten_with_path(expected)[0]
    for (path, leaf), other, norm in zip(paths, jax.tree.leaves(found), norms, strict=True):
        error = float(jnp.linalg.norm((leaf - other).ravel()))
        assert error <= tolerance * max(norm, floor), (jax.tree_util.keystr(path), error, norm)


@pytest.fixture(params=[REFERENCE, FIXED], ids=["reference", "fixed"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


def test_packing_and_padding_change_no_loss_gradient_or_statistic(recipe) -> None:
    """Packed rows against each view in its own row; then NaN in every pixel that is not there."""
    evaluate = make_evaluate(recipe)
    rows = views()
    loss, gradients, statistics = evaluate(packed([[view] for row in rows for view in row], recipe))
    together = packed(rows, recipe)
    poisoned = packed(rows, recipe)
    for images in poisoned.images.values():
        images.values_RxSxTxCxHxW[images.frames_RxSxT == FRAME_NONE] = np.nan
    for batch in (together, poisoned):
        found = evaluate(batch)
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert_close(found[1], gradients, 1e-5)
        assert_close(found[2], statistics, 1e-5)


def test_no_gradient_crosses_a_segment(recipe) -> None:
    """Running statistics in BatchNorm: batch statistics couple the views of a batch by definition."""
    rows = packed(views(), recipe)
    ramen, params, statistics = make_model(recipe)
    values = {name: images.values_RxSxTxCxHxW for name, images in rows.images.items()}

    @partial(jax.jit, compiler_options=QUICK)
    def sensitivity(values: dict[str, jax.Array], row: jax.Array, segment: jax.Array) -> dict[str, jax.Array]:
        def one_segment(values: dict[str, jax.Array]) -> jax.Array:
            images = {
                name: images._replace(values_RxSxTxCxHxW=values[name]) for name, images in rows.images.items()
            }
            predictions = ramen.reconstruct(params, statistics, rows._replace(images=images), BANDS)
            total = jnp.zeros(())
            for name, prediction in predictions.items():
                here = jnp.arange(prediction.shape[0])[:, None] == row
                here = here & (images[name].view_RxS == segment)
                total += jnp.sum(jnp.square(prediction) * here[:, :, None, None, None, None])
            return total

        return jax.grad(one_segment)(values)

    for r, draws in enumerate(DRAWS):
        for segment, (_, modalities) in enumerate(draws, start=1):
            gradients = sensitivity(values, jnp.int32(r), jnp.int32(segment))
            for name, gradient in gradients.items():
                own = np.zeros(gradient.shape[:2], bool)
                own[r] = rows.images[name].view_RxS[r] == segment
                assert not np.asarray(gradient)[~own].any(), (r, segment, name)
                assert own.any() == (name in modalities)
            assert any(np.asarray(gradient).any() for gradient in gradients.values())


def test_one_program_serves_every_gsd_subset_and_number_of_dates() -> None:
    plan = Plan([PlannedCorpus(FLOATS, 200, FIELDS_GSDS)], seed=3, rows_per_step=1, recipe=FIXED)
    steps = StepSource(plan, {"fields": SmallSource(FLOATS, 200)})
    ramen, params, statistics = make_model(FIXED)
    traces = 0

    @partial(jax.jit, compiler_options=QUICK)
    def loss(params: Any, rows: Rows) -> jax.Array:
        nonlocal traces
        traces += 1
        return ramen.loss(params, statistics, rows, BANDS, ramen.counts(rows), train=True)[0]

    draws, dates = set(), set()
    for step in range(6):
        rows = steps.step(step).rows
        draws |= {(view.target_gsd, view.modalities) for row in plan.rows(step) for view in row}
        dates |= set((rows.images["s2"].frames_RxSxT > 0).sum(axis=2).ravel().tolist())
        assert np.isfinite(float(loss(params, rows)))
    assert {gsd for gsd, _ in draws} == set(FIELDS_GSDS)
    assert len({modalities for _, modalities in draws}) > 6
    assert {1, 2, 3, 4, 5} <= dates
    assert traces == 1
