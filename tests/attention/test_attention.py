"""Attention within segments: every backend agrees with the definition, and no gradient crosses a segment."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ramen_jax.attention import attention as module
from ramen_jax.attention.attention import BACKENDS, Attention, attention, backend_for
from ramen_jax.console import UserError

OTHERS = sorted(set(BACKENDS) - {"dense"})
# Kernels of hardware that is not here are interpreted.
WAYS = {
    name: partial(way, interpret=True) if name in ("splash", "triton") else way
    for name, way in BACKENDS.items()
}
# Views of a packed row, as lengths from left to right; what is left of the row is padding.
ROWS = {
    "one view fills the row": [1300],
    "one view and a token of padding": [1299],
    "sizes of a packed row": [771, 97, 3, 256, 128, 1],
    "40 views": [1 + (37 * i) % 61 for i in range(40)],
    "padding only": [],
}
LENGTH = 1300


def random_qkv(length: int, batch: int = 2, heads: int = 2, width: int = 8, seed: int = 0) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, (batch, length, heads, width)) for key in keys]


def row(lengths: list[int], length: int = LENGTH) -> np.ndarray:
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, length - len(ids))).astype(np.int32)


@partial(jax.jit, static_argnames="backend")
def with_gradients(
    q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array, segments: jax.Array, backend: str
) -> tuple[jax.Array, ...]:
    """Output and the gradients of q, k and v."""
    out, pull = jax.vjp(lambda *qkv: WAYS[backend](*qkv, segments), q, k, v)
    return out, *pull(grad)


def test_dense_matches_the_definition() -> None:
    """One query at a time, in float64."""
    segments = np.array([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16], np.int32)
    q, k, v, _ = random_qkv(16)
    found = attention(q, k, v, jnp.asarray(segments), backend="dense")
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    expected = np.zeros_like(v)
    for b, i, h in np.ndindex(*q.shape[:3]):
        own = segments[b] == segments[b, i]
        scores = k[b, own, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        expected[b, i, h] = weights @ v[b, own, h] / weights.sum()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(("first", "second"), [(name, list(ROWS)[i - 1]) for i, name in enumerate(ROWS)])
def test_equals_dense_at_real_lengths(backend: str, first: str, second: str) -> None:
    """Values and gradients, also of padding. (Mutants: the mask of the last keys left out; a view's last tile begun
    one token late; the normaliser of overhanging queries kept.)"""
    segments = jnp.asarray(np.stack([row(ROWS[first]), row(ROWS[second])]))
    arrays = random_qkv(LENGTH)
    found = with_gradients(*arrays, segments, backend=backend)
    wanted = with_gradients(*arrays, segments, backend="dense")
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, theirs, atol=3e-6)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("length", [1100, 1999])
def test_equals_dense_at_other_lengths(backend: str, length: int) -> None:
    """Two and four blocks of a TPU's kernel, the last one not full. (Mutants: places beyond the row are padding;
    backward, the blocks of keys that queries meet in the place of the queries that keys meet.)"""
    segments = jnp.asarray(np.stack([row([700, 1, 250], length), row([length - 5], length)]))
    arrays = random_qkv(length, width=32)
    found = with_gradients(*arrays, segments, backend=backend)
    wanted = with_gradients(*arrays, segments, backend="dense")
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_no_gradient_crosses_a_segment(backend: str) -> None:
    """A loss on one view leaves exactly nothing on any other, nor on padding, nor on another row."""
    lengths = ROWS["sizes of a packed row"]
    segments = jnp.asarray(np.stack([row(lengths), row([LENGTH])]))
    q, k, v, grad = random_qkv(LENGTH)
    for number in (1, 3, 4):
        own = np.asarray(segments == number) & (np.arange(2) == 0)[:, None]
        only = jnp.where(own[:, :, None, None], grad, 0)
        _, *grads = with_gradients(q, k, v, only, segments, backend=backend)
        for found in map(np.asarray, grads):
            assert np.all(found[~own] == 0)
            assert np.all(np.abs(found[own]).max(axis=-1) > 0)


@pytest.mark.parametrize("backend", OTHERS)
def test_ids_may_come_in_any_order(backend: str) -> None:
    """Dates of a series that were not measured stand between the others. (Mutant: the mask left out of keys between
    the first and the last of a segment.)"""
    kinds = np.random.default_rng(0).integers(0, 3, (2, LENGTH // 10))
    segments = np.repeat(kinds, 10, axis=1).astype(np.int32)
    segments[1] = np.repeat([1, 2, 1], [600, 100, 600])
    segments = jnp.asarray(segments)
    arrays = random_qkv(LENGTH)
    wanted = with_gradients(*arrays, segments, backend="dense")
    for ours, theirs in zip(with_gradients(*arrays, segments, backend=backend), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)


@pytest.mark.parametrize("backend", OTHERS)
def test_foreign_blocks_are_never_read(backend: str) -> None:
    """NaN in the blocks of a foreign view reaches nothing: a masked NaN would, for 0 x NaN is NaN."""
    own = 512
    segments = jnp.asarray(np.stack([row([own, LENGTH - own])] * 2))
    q, k, v, grad = random_qkv(LENGTH)
    foreign = (jnp.arange(LENGTH) >= own)[None, :, None, None]
    poisoned = [jnp.where(foreign, jnp.nan, a) for a in (q, k, v, grad)]
    found = with_gradients(*poisoned, segments, backend=backend)
    wanted = with_gradients(*(jnp.where(foreign, 0, a) for a in (q, k, v, grad)), segments, backend="dense")
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours[:, :own], theirs[:, :own], atol=3e-6)


@pytest.mark.parametrize("backend", OTHERS)
def test_large_scores_neither_overflow_nor_vanish(backend: str) -> None:
    """The largest score of a view may be a thousand below a foreign view's. (Mutant: the maximum over a tile's
    foreign keys too.)"""
    q, k, v, grad = random_qkv(LENGTH)
    segments = jnp.asarray(np.stack([row([700, 600]), row([30, 1200])]))
    size = jnp.where(segments == 1, 0.1, 10.0)[:, :, None, None]
    arrays = (q * size, k * size, v, grad)
    wanted = with_gradients(*arrays, segments, backend="dense")
    for ours, theirs in zip(with_gradients(*arrays, segments, backend=backend), wanted, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_in_and_out(backend: str) -> None:
    arrays = [x.astype(jnp.bfloat16) for x in random_qkv(LENGTH, heads=1)]
    segments = jnp.asarray(np.stack([row([900, 400]), row([LENGTH])]))
    found = with_gradients(*arrays, segments, backend=backend)
    exact = with_gradients(*(x.astype(jnp.float32) for x in arrays), segments, backend="dense")
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=2e-2 * float(jnp.abs(theirs).max()))


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """(Mutant: the dense way for long rows.)"""

    def temporary(length: int) -> int:
        shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        program = with_gradients.lower(shape, shape, shape, shape, ids, backend="blockwise").compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(16_000) < 2.1 * temporary(8_000) < 100e6


def test_short_rows_are_dense_bit_for_bit() -> None:
    q, k, v, _ = random_qkv(module.DENSE_LENGTH)
    for backend in BACKENDS:
        found = attention(q, k, v, None, backend=backend)
        np.testing.assert_array_equal(found, attention(q, k, v, None, backend="dense"))


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_the_backend_follows_the_devices_it_is_made_for() -> None:
    assert [backend_for(name) for name in ("cpu", "tpu", "gpu")] == ["blockwise", "splash", "triton"]
    with pytest.raises(UserError, match="neuron"):
        backend_for("neuron")


@pytest.mark.parametrize(
    ("capability", "backend"),
    [("7.5", "blockwise"), ("8.0", "triton"), ("12.0", "triton"), ("gfx90a", "triton")],
)
def test_a_device_too_old_for_the_kernel_does_without_and_says_so(capability, backend, capsys) -> None:
    """(Mutants: in silence; capabilities compared as text.)"""
    device = SimpleNamespace(platform="gpu", device_kind="Some GPU", compute_capability=capability)
    mesh = SimpleNamespace(devices=np.array([device], object))
    assert Attention.on(mesh).backend == backend
    assert ("Some GPU has compute capability" in capsys.readouterr().err) == (backend == "blockwise")


def test_wrong_backends_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="unknown attention backend 'blockwize'; did you mean \"blockwise\""):
        Attention("blockwize")
    with pytest.raises(UserError, match="knows no segments"):
        Attention("cudnn")


def test_tracing_never_asks_the_process_for_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step traced on a CPU host for another platform must hold that platform's algorithm."""
    shape = jax.ShapeDtypeStruct((2, 256, 2, 8), jnp.float32)

    def asked() -> str:
        raise AssertionError("jax.default_backend() was read")

    monkeypatch.setattr(jax, "default_backend", asked)
    jax.eval_shape(Attention("blockwise"), shape, shape, shape, jax.ShapeDtypeStruct((2, 256), jnp.int32))


def test_rows_and_heads_that_do_not_divide_say_which_would() -> None:
    fake = type("Mesh", (), {"shape": {"data": 2, "fsdp": 2, "tensor": 3}, "size": 12})()
    q, k, v, _ = random_qkv(200, batch=6, heads=3)
    with pytest.raises(UserError, match=r"6 rows do not divide over data x fsdp = 4 devices; 8 would"):
        Attention("blockwise", fake)(q, k, v, None)
    q, k, v, _ = random_qkv(200, batch=4, heads=4)
    with pytest.raises(UserError, match=r"4 attention heads do not divide over tensor = 3 devices; 6 would"):
        Attention("blockwise", fake)(q, k, v, None)


def test_a_mesh_of_one_device_changes_nothing() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    q, k, v, _ = random_qkv(200)
    np.testing.assert_array_equal(Attention.on(mesh)(q, k, v, None), Attention("blockwise")(q, k, v, None))


def test_eight_devices_compute_their_own_share_and_speak_to_no_other(repository: Path) -> None:
    """tests/attention/sharded.py on 8 devices. (Mutants: the heads' axis left out of the split; no shard_map.)"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    script = repository / "tests" / "attention" / "sharded.py"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
