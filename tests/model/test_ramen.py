"""The masked autoencoder: sizes, properties of the loss, and what each recipe changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax.config import SIZES
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.loss import modality_loss, targets
from ramen_jax.model.ramen import Ramen, Tree
from ramen_jax.parallel.rules import flat_names, logical_axes
from ramen_jax.rows.batch import Rows
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import PackedView
from ramen_jax.samples import Image
from tests.model.conftest import BANDS, SPEC, build, make_view, traps


def packed(views: list[list[PackedView]], recipe: str = "reference") -> Rows:
    options = traps(recipe)
    return pack(SPEC, views, exact_capacity(SPEC, views, options), options)


@partial(jax.jit, static_argnums=0)
def encode(ramen: Ramen, params: Tree, statistics: Tree, rows: Rows) -> jax.Array:
    return ramen.encode(params, statistics, rows, BANDS)


@partial(jax.jit, static_argnums=0)
def reconstruct(ramen: Ramen, params: Tree, statistics: Tree, rows: Rows) -> dict[str, jax.Array]:
    return ramen.reconstruct(params, statistics, rows, BANDS)


@partial(jax.jit, static_argnames=("ramen", "train"))
def total_loss(
    ramen: Ramen, params: Tree, statistics: Tree, rows: Rows, train: bool = False
) -> tuple[jax.Array, dict]:
    total, (losses, _) = ramen.loss(params, statistics, rows, BANDS, ramen.counts(rows), train=train)
    return total, losses


@pytest.mark.parametrize("size", ["base"])
def test_parameter_counts_of_the_paper(size: str) -> None:
    params, _ = Ramen(Architecture(**SIZES[size]), traps()).shapes
    count = {
        side: sum(leaf.size for leaf in jax.tree.leaves(params[side])) for side in ("encoder", "decoder")
    }
    assert count == {"encoder": 98_416_069, "decoder": 33_043_589}


def test_every_parameter_has_logical_axes() -> None:
    _, params, _ = build("fixed")
    for name, leaf in flat_names(params).items():
        names = logical_axes(tuple(name.split("/")), leaf.ndim)
        assert len(names) == leaf.ndim
        assert ("layers" in names) == ("blocks" in name)


def test_an_encoder_alone_has_the_encoder_of_the_whole() -> None:
    ramen, params, _ = build()
    alone, _ = Ramen(ramen.architecture, ramen.recipe, with_decoder=False).shapes
    assert list(alone) == ["encoder"]
    assert flat_names(alone).keys() == flat_names({"encoder": params["encoder"]}).keys()


def test_statistics_of_the_sensors_compile_nothing() -> None:
    """Mean and standard deviation are data: one program serves a moved mean. (Mutant: Ramen takes whole sensors.)"""
    ramen, params, statistics = build()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def encode_once(params: Tree, statistics: Tree, rows: Rows) -> jax.Array:
        return ramen.encode(params, statistics, rows, BANDS)

    for mean in (0.0, 0.01):
        view = replace(make_view(1, modalities=("aerial",)), statistics={"aerial": ((mean,) * 4, (1.0,) * 4)})
        encode_once(params, statistics, packed([[view]]))


def test_unknown_parameter_has_no_axes() -> None:
    with pytest.raises(ValueError, match="no logical axes"):
        logical_axes(("encoder", "surprise"), 1)


@pytest.mark.parametrize("recipe", ["reference", "fixed"])
def test_masked_pixels_alone_carry_the_loss(recipe: str) -> None:
    """The loss does not move when the target changes under a visible token, and does under a hidden one."""
    view = make_view(1, modalities=("aerial",))
    rows = packed([[view]], recipe)
    options = traps(recipe)
    hidden = np.asarray(rows.images["aerial"].mask_RxSxGxG[0, 0])
    model = build(recipe)
    prediction = reconstruct(*model, rows)["aerial"]

    def loss_with(pixel: tuple[int, int]) -> float:
        images = rows.images["aerial"]
        values = np.array(images.values_RxSxTxCxHxW)
        values[0, 0, 0, 0, pixel[0], pixel[1]] += 1.0
        changed = images._replace(values_RxSxTxCxHxW=values)
        count = model[0].counts(rows)["aerial"]
        return float(modality_loss(prediction, changed, count, options))

    base = float(total_loss(*model, rows)[1]["loss/aerial"])
    masked, visible = np.argwhere(hidden)[0], np.argwhere(~hidden)[0]
    pixels = 24 // hidden.shape[0]
    assert loss_with(tuple(visible * pixels)) == pytest.approx(base, rel=1e-6)
    assert loss_with(tuple(masked * pixels)) != pytest.approx(base, rel=1e-6)


def test_masked_tokens_never_reach_the_encoder_in_the_fixed_recipe() -> None:
    """With temporal 'visible' and metric sampling, pixels that only masked tokens read have zero gradient."""
    view = make_view(2, modalities=("s2",), target_gsd=4.0)
    rows = packed([[view]], "fixed")
    ramen, params, statistics = build("fixed")

    def encoded(values: jax.Array) -> jax.Array:
        images = {**rows.images, "s2": rows.images["s2"]._replace(values_RxSxTxCxHxW=values)}
        encoder = ramen.encoder(params, statistics)
        return jnp.sum(jnp.square(encoder(rows._replace(images=images), BANDS, train=True)))

    gradient = np.asarray(jax.jit(jax.grad(encoded))(jnp.asarray(rows.images["s2"].values_RxSxTxCxHxW)))
    hidden = np.asarray(rows.images["s2"].mask_RxSxGxG[0, 0])
    touched = np.any(gradient[0, 0] != 0, axis=(0, 1))
    np.testing.assert_array_equal(touched, ~hidden)


def test_reference_target_is_undefined_for_one_band() -> None:
    one_band = {**BANDS, "dem": BANDS["dem"][:1]}
    rows = packed([[make_view(3)]])
    ramen, params, statistics = build()
    with pytest.raises(ValueError, match=r"modality 'dem' has one band.*standardised"):
        ramen.loss(params, statistics, rows, one_band, ramen.counts(rows), train=True)


def test_reference_target_of_two_bands_keeps_only_a_sign() -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 2, 5, 5)), jnp.float32)
    found = np.asarray(targets(values, "per_pixel"))
    sign = np.sign(np.asarray(values)[:, :, :, 0] - np.asarray(values)[:, :, :, 1])
    np.testing.assert_allclose(found[:, :, :, 0], sign * 0.70710678, atol=1e-3)


def test_time_padding_enters_only_the_reference() -> None:
    """A short series beside a long one: the reference feels its padding, the fixed recipe does not."""
    short, long = make_view(4, modalities=("s2",), dates=2), make_view(5, modalities=("s2",), dates=5)
    for recipe, same in (("reference", False), ("fixed", True)):
        model = build(recipe)
        alone, together = packed([[short]], recipe), packed([[short], [long]], recipe)
        first = encode(*model, alone)[0]
        second = encode(*model, together)[0]
        assert np.allclose(first, second, atol=1e-5) == same, recipe


def test_missing_bands_leave_input_and_loss_in_the_fixed_recipe() -> None:
    view = make_view(6, modalities=("aerial",))
    image = view.sample.images["aerial"]
    present = np.array([True, True, False, True])
    losses = {}
    for recipe in ("reference", "fixed"):
        model = build(recipe)
        for value in (0.0, 7.0):
            values = image.values.copy()
            values[:, 2] = value
            sample = replace(
                view.sample, images={**view.sample.images, "aerial": Image(values, image.dates, present)}
            )
            rows = packed([[replace(view, sample=sample)]], recipe)
            losses[recipe, value] = float(total_loss(*model, rows)[0])
    assert losses["fixed", 0.0] == losses["fixed", 7.0]
    assert losses["reference", 0.0] == losses["reference", 7.0], (
        "an absent band is a zero, whatever is stored"
    )


def test_invalid_pixels_are_left_out_by_weight() -> None:
    view = make_view(7, modalities=("s2",))
    image = view.sample.images["s2"]
    valid = np.ones((3, 6, 6), bool)
    valid[:, :, :3] = False
    model = build("fixed")
    results = []
    for value in (0.0, 1e3):
        values = image.values.copy()
        values[..., :3] = value
        sample = replace(
            view.sample, images={**view.sample.images, "s2": Image(values, image.dates, image.present, valid)}
        )
        rows = packed([[replace(view, sample=sample)]], "fixed")
        results.append(float(total_loss(*model, rows, train=True)[0]))
        assert np.isfinite(results[-1])
        everything = 0.75 * 36 * 3
        assert float(model[0].counts(rows)["s2"]) < everything
    assert results[0] == results[1]


def test_modality_embedding_tells_masked_tokens_apart() -> None:
    """Without it, hidden tokens of two modalities at one place are identical through the decoder."""
    rows = packed([[make_view(8, modalities=("aerial", "dem"))]])
    modality, coords = rows.decoder_modality_RxL[0], np.asarray(rows.decoder_coords_RxLx2[0])
    hidden = np.asarray(rows.decoder_encoder_RxL[0]) < 0
    pairs = [
        (i, j)
        for i in np.flatnonzero(hidden & (modality == 0))
        for j in np.flatnonzero(hidden & (modality == 1))
        if np.array_equal(coords[i], coords[j])
    ]
    assert pairs
    for choice, same in (("none", True), ("bands", False)):
        model = build(modality_embedding=choice)
        ramen, params, _ = model
        encoded = encode(*model, rows)
        tokens = np.asarray(
            jax.jit(lambda e, r, p=params, m=ramen: m.decoder(p).tokens(e, r, BANDS))(encoded, rows)
        )[0]
        assert all(np.allclose(tokens[i], tokens[j], atol=1e-6) == same for i, j in pairs)


def test_bfloat16_is_the_same_model_to_its_precision() -> None:
    rows = packed([[make_view(12)]])
    exact, rounded = (float(total_loss(*build(dtype=d), rows)[0]) for d in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)


def test_dropout_needs_a_key_and_training() -> None:
    rows = packed([[make_view(9, modalities=("s2",))]])
    ramen, params, statistics = build(ltae_dropout=0.5)
    images = rows.images["s2"]

    @partial(jax.jit, static_argnums=0)
    def features(dropout: bool) -> jax.Array:
        key = jax.random.key(0) if dropout else None
        return ramen.encoder(params, statistics).features(images, BANDS["s2"], train=True, key=key)

    plain, dropped, again = features(False), features(True), features(True)
    assert not np.allclose(plain, dropped)
    np.testing.assert_array_equal(dropped, again)


def test_running_statistics_follow_pytorch() -> None:
    """Momentum 0.1 towards the batch's mean and unbiased variance, padding left out; untouched without dates."""
    ramen, params, statistics = build()
    norm = ramen.encoder(params, statistics).ltae.norms[0]
    x = jnp.asarray(np.random.default_rng(1).normal(2.0, 3.0, (2, 10, 32)), jnp.float32)
    valid = jnp.asarray(np.arange(20).reshape(2, 10) < 13)
    norm(x, valid, train=True)
    inside = np.asarray(x).reshape(20, 32)[:13]
    np.testing.assert_allclose(norm.mean[...], 0.1 * inside.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * inside.var(0, ddof=1), rtol=1e-5)
    before = np.asarray(norm.mean[...])
    norm(x, jnp.zeros((2, 10), bool), train=True)
    np.testing.assert_array_equal(norm.mean[...], before)
    assert int(norm.batches[...]) == 1


@pytest.mark.parametrize("recipe", ["reference", "fixed"])
def test_memory_saving_changes_nothing(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked temporal attention and rematerialised blocks give the loss and gradients of the plain model."""
    import ramen_jax.model.decoder as decoder
    import ramen_jax.model.temporal as temporal

    rows = packed([[make_view(10, 8.0)], [make_view(11, 8.0)]], recipe)

    def run(remat: str) -> tuple[float, dict]:
        ramen, params, statistics = build(recipe, remat)

        @jax.jit
        def loss(params: Tree) -> jax.Array:
            return ramen.loss(params, statistics, rows, BANDS, ramen.counts(rows), train=True)[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return float(value), gradient

    plain = run("none")
    monkeypatch.setattr(temporal, "CHUNK_VALUES", 300)
    monkeypatch.setattr(decoder, "CHUNK_VALUES", 300)
    saving = run("full")
    assert saving[0] == pytest.approx(plain[0], rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(1 + np.abs(b).max())),
        saving[1],
        plain[1],
    )
