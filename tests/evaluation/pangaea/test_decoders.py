"""Decoders: parameter counts, weights in and out, statistics, dropout, exact zero gradients, wrong inputs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea.decoders import KINDS, build, count, from_official, layers, to_official

BASE = (768,) * 4
UPERNET = 39_344_898  # four levels of 768, 512 channels, 2 classes
# name, widths, outputs, sizes, parameters
COUNTS = [
    ("seg_upernet", BASE, 2, {}, UPERNET),
    ("seg_upernet", BASE, 1, {}, 39_344_385),
    ("seg_upernet", BASE, 15, {}, 39_351_567),
    ("seg_upernet", (1536,) * 4, 2, {}, 66_873_858),
    ("seg_upernet", (1536,) * 4, 20, {}, 66_883_092),
    ("seg_upernet", (1024,) * 4, 2, {}, 46_948_354),
    ("reg_upernet", BASE, 1, {}, 39_344_385),
    ("seg_upernet_mt_linear", BASE, 2, {"dates": 6}, UPERNET + 7),
    ("seg_upernet_mt_ltae", BASE, 2, {"dates": 6}, UPERNET + 1_235_072),
    ("reg_upernet_mt_ltae", BASE, 1, {"dates": 12}, 39_344_385 + 1_235_072),
    ("seg_upernet_mt_ltae", (1536,) * 4, 2, {"dates": 6}, 66_873_858 + 4_829_312),
    ("seg_siamupernet_diff", BASE, 1, {"dates": 2}, 39_344_385),
    ("seg_siamupernet_conc", BASE, 1, {"dates": 2}, 66_873_345),
    ("seg_linear", BASE, 2, {}, 1_538),
    ("seg_linear_mt", BASE, 2, {"dates": 6}, 1_538 + 7),
    ("cls_linear", BASE, 10, {}, 30_730),
    ("seg_unet", (6,), 2, {}, 14_790_722),
    ("reg_unet", (6,), 1, {}, 14_790_722 - 65),
]
SMALL = {"channels": 8, "topology": (4, 6)}


def small(name: str, outputs: int = 1):
    kind = KINDS[name]
    dates = 1 if kind.merge == "single" else 2
    widths = (3,) if kind.head == "unet" else (16,) * 4
    return build(name, widths, outputs, dates=dates, **SMALL)


def inputs(decoder, batch: int = 2, side: int = 6, seed: int = 0) -> list[jax.Array]:
    generator = np.random.default_rng(seed)
    dates = (decoder.dates,) if decoder.series else ()
    return [
        jnp.asarray(generator.normal(size=(batch, *dates, side, side, width)), jnp.float32)
        for width in decoder.widths
    ]


@pytest.mark.parametrize(("name", "widths", "outputs", "sizes", "expected"), COUNTS)
def test_parameter_counts(name, widths, outputs, sizes, expected) -> None:
    assert count(build(name, widths, outputs, **sizes).shapes()[0]) == expected


@pytest.mark.parametrize("name", KINDS)
def test_weights_go_out_and_come_back(name: str) -> None:
    """Every number of every decoder has a name, and the same bits return."""
    decoder = small(name)
    params, statistics = decoder.init(jax.random.key(1))
    tensors = to_official(decoder, params, statistics)
    assert sum(np.size(tensor) for tensor in tensors.values()) == count(params) + count(statistics)
    back = from_official(decoder, tensors)
    assert jax.tree.structure(back) == jax.tree.structure((params, statistics))
    jax.tree.map(np.testing.assert_array_equal, back, (params, statistics))


def test_an_encoder_beside_the_decoder_is_passed_over_and_all_problems_are_listed() -> None:
    decoder = small("seg_linear")
    tensors = to_official(decoder, *decoder.init(jax.random.key(0)))
    from_official(decoder, {**tensors, "encoder.cls_token": np.zeros(3)})
    wrong = {"linear_head.weight": np.zeros((1, 4, 1, 1)), "linear_head.extra": np.zeros(1)}
    with pytest.raises(UserError) as error:
        from_official(decoder, wrong)
    for part in ("linear_head.bias is missing", "linear_head.extra is unknown", "is (1, 4, 1, 1), expected"):
        assert part in str(error.value)


def test_statistics_move_in_training_only_and_by_pytorch_rules() -> None:
    """Mean and unbiased variance by a tenth; the bias of the layer before is part of the mean."""
    layer = layers.Dense(3, 5, dtype="float32", rngs=nnx.Rngs(0))
    norm = layers.BatchNorm(5, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 3)), jnp.float32)
    y = np.asarray(layer(x)).reshape(-1, 5)
    found = norm(x, layer, True)
    np.testing.assert_allclose(norm.mean[...], 0.1 * y.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * y.var(0, ddof=1), rtol=1e-5)
    assert int(norm.batches[...]) == 1
    expected = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(found).reshape(-1, 5), expected, atol=2e-5)
    before = np.asarray(norm.mean[...])
    expected = (y - before) / np.sqrt(np.asarray(norm.var[...]) + 1e-5)
    np.testing.assert_allclose(np.asarray(norm(x, layer, False)).reshape(-1, 5), expected, atol=2e-5)
    np.testing.assert_array_equal(norm.mean[...], before)


def test_a_bias_before_batch_statistics_has_no_gradient() -> None:
    """Exactly zero, where arithmetic would leave rounding noise that Adam enlarges to whole steps."""
    block = layers.ConvNorm(3, 5, 1, dtype="float32", rngs=nnx.Rngs(0))
    graph, params, statistics = nnx.split(block, nnx.Param, nnx.BatchStat)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params, statistics, copy=True)(x, train=True)))

    found = nnx.to_pure_dict(gradient(params))
    assert not np.any(found["conv"]["bias"])
    assert np.all(found["conv"]["kernel"] != 0)
    assert np.all(found["norm"]["bias"] != 0)


def test_dropout_follows_its_key_and_is_off_without_one() -> None:
    decoder = small("seg_upernet_mt_ltae")
    params, statistics = decoder.init(jax.random.key(0))
    levels = inputs(decoder)

    @partial(jax.jit, static_argnames="train")
    def logits(key, train):
        return decoder.apply(params, statistics, levels, (9, 9), train=train, key=key)[0]

    one, same, other = (logits(jax.random.key(seed), train=True) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    one, other = (logits(jax.random.key(seed), train=False) for seed in (1, 2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["seg_linear_mt", "seg_unet_mt"])
def test_a_series_is_read_alone_as_among_others(name: str) -> None:
    """(Mutant: the dates in another order at every place of a batch.)"""
    decoder = small(name)
    params, statistics = decoder.init(jax.random.key(0))
    (level,) = inputs(decoder)[:1]
    both = [level] * len(decoder.widths)
    first = [level[:1]] * len(decoder.widths)
    second = [level[1:]] * len(decoder.widths)
    together, *alone = (
        jax.jit(lambda levels: decoder.apply(params, statistics, levels, (6, 6))[0])(levels)
        for levels in (both, first, second)
    )
    np.testing.assert_allclose(together, jnp.concatenate(alone), atol=1e-5)


def test_channels_are_dropped_as_a_whole() -> None:
    x = jnp.ones((3, 4, 5, 64))
    found = np.asarray(layers.dropout(x, 0.25, jax.random.key(0), shared=(1, 2)))
    assert np.all(found == found[:, :1, :1])
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.75], rtol=1e-6)
    assert layers.dropout(x, 0.25, None) is x


def test_a_regression_is_never_negative_and_statistics_stay_in_evaluation() -> None:
    decoder = small("reg_upernet")
    params, statistics = decoder.init(jax.random.key(3))
    logits, after = jax.jit(lambda: decoder.apply(params, statistics, inputs(decoder), (7, 11)))()
    assert logits.shape == (2, 7, 11, 1)
    assert float(jnp.min(logits)) >= 0
    jax.tree.map(np.testing.assert_array_equal, after, statistics)


def test_bfloat16_stays_near() -> None:
    """Activations in half precision; parameters, statistics and logits in float32."""
    exact = small("seg_upernet", outputs=3)
    half = build("seg_upernet", exact.widths, 3, dtype="bfloat16", **SMALL)
    params, statistics = exact.init(jax.random.key(0))
    levels = inputs(exact)
    expected, _ = jax.jit(lambda: exact.apply(params, statistics, levels, (9, 9)))()
    found, _ = jax.jit(lambda: half.apply(params, statistics, levels, (9, 9)))()
    assert found.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(found - expected))) < 0.03
    moved = jax.eval_shape(lambda: half.apply(params, statistics, levels, (9, 9), train=True))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_wrong_inputs() -> None:
    with pytest.raises(UserError, match='did you mean "seg_upernet"'):
        build("seg_upernett", BASE, 2)
    with pytest.raises(UserError, match="one width"):
        build("seg_upernet_mt_ltae", (16, 32, 32, 32), 2, dates=3)
    with pytest.raises(UserError, match="compares two dates"):
        build("seg_siamupernet_diff", BASE, 2)
    with pytest.raises(UserError, match="one value per pixel"):
        build("reg_upernet", BASE, 2)
    decoder = small("seg_linear_mt")
    params, statistics = decoder.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"levels \[B, T, h, w, D\]"):
        decoder.apply(params, statistics, inputs(small("seg_linear")), (9, 9))


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (1, 1)), ((16, 15), (3, 6)), ((5, 7), (40, 3)), ((4, 4), (4, 9))]
)
def test_resizing_and_pooling_are_those_of_pytorch(old, new) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'torch>=2.13,<3'")
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2)
    functional = torch.nn.functional
    for ours, reference in (
        (layers.resize, functional.interpolate(theirs, size=new, mode="bilinear", align_corners=False)),
        (layers.average_pool, functional.adaptive_avg_pool2d(theirs, new)),
    ):
        found = ours(jnp.asarray(x), new)
        np.testing.assert_allclose(found, reference.permute(0, 2, 3, 1).numpy(), atol=2e-6)


@pytest.mark.parametrize("shape", [(2, 7, 5, 3, 4), (1, 1, 2, 5, 2)])
def test_the_convolution_has_the_gradients_of_xlas(shape) -> None:
    """On every platform's way. (Mutants: rows of taps not mirrored; taps of a row in the other order.)"""
    batch, height, width, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, inputs, outputs)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(batch, height, width, outputs)), jnp.float32)

    def gradients(convolve):
        return jax.grad(lambda x, kernel: jnp.sum(weights * convolve(x, kernel)), argnums=(0, 1))(x, kernel)

    for ours, theirs in zip(gradients(layers.conv3), gradients(layers._convolution), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(
        layers._by_convolution(x, weights), gradients(layers._convolution)[1], atol=1e-4
    )


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (8, 8)), ((5, 3), (7, 11)), ((6, 6), (2, 2)), ((1, 2), (9, 6))]
)
def test_a_convolution_of_resized_maps_is_that_of_the_maps_joined(old, new) -> None:
    """With its gradients, to rounding. (Mutants: taps of a column the other way round; rows and columns exchanged;
    the other border beyond a border.)"""
    rng = np.random.default_rng(3)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 7, 5)), jnp.float32)
    fine, coarse = (
        jnp.asarray(rng.normal(size=(2, *side, c)), jnp.float32) for side, c in ((new, 3), (old, 4))
    )
    weights = jnp.asarray(rng.normal(size=(2, *new, 5)), jnp.float32)

    def joined(fine, coarse, kernel):
        both = jnp.concatenate([fine, layers.resize(coarse, new)], axis=-1)
        return jnp.sum(weights * layers.conv3(both, kernel))

    def apart(fine, coarse, kernel):
        return jnp.sum(weights * layers.conv3_of_maps([fine, coarse], kernel))

    arguments = (fine, coarse, kernel)
    found, expected = (jax.value_and_grad(f, argnums=(0, 1, 2))(*arguments) for f in (apart, joined))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, expected)


def test_the_maximum_of_windows_is_flax_own() -> None:
    """With an odd row and column left out. (Mutant: the last row kept.)"""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 5, 3)), jnp.float32)
    np.testing.assert_array_equal(layers.max_pool(x), nnx.max_pool(x, (2, 2), strides=(2, 2)))
