"""The products of a block on one device: what a linear layer gives, gradients in float32. Meshes: tests/parallel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ramen_jax.model.layers import linear
from ramen_jax.model.products import product


def pulled(function, x, layer, grad):
    """(result, gradients of input, kernel and bias)."""
    graph, state = nnx.split(layer)

    @jax.jit
    def run(x, state, grad):
        y, pull = jax.vjp(lambda x, state: function(x, nnx.merge(graph, state)), x, state)
        return y, *pull(grad)

    y, grad_x, grads = run(x, state, grad)
    return y, grad_x, grads["kernel"][...], grads["bias"][...]


@pytest.mark.parametrize("shape", [(2, 37), (1, 1100)])
def test_in_float32_it_is_the_linear_layer_bit_for_bit(shape):
    """Values and all gradients. (Mutant: a product in another order of sums.)"""
    keys = jax.random.split(jax.random.key(0), 2)
    layer = linear(48, 96, rngs=nnx.Rngs(0), dtype=jnp.float32)
    x, grad = jax.random.normal(keys[0], (*shape, 48)), jax.random.normal(keys[1], (*shape, 96))
    ours = pulled(product, x, layer, grad)
    for found, expected in zip(ours, pulled(lambda x, layer: layer(x), x, layer, grad), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_in_bfloat16_gradients_of_kernel_and_bias_are_never_rounded():
    """What other devices and micro-batches add is added to float32. (Mutant: the gradient of a bfloat16 kernel.)"""
    keys = jax.random.split(jax.random.key(1), 2)
    layer = linear(16, 32, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    x, grad = (jax.random.normal(k, (2, 300, n), jnp.bfloat16) for k, n in zip(keys, (16, 32), strict=True))
    y, grad_x, grad_kernel, grad_bias = pulled(product, x, layer, grad)
    assert (y.dtype, grad_x.dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact_x, exact_grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    np.testing.assert_allclose(
        grad_kernel, np.einsum("bli,blo->io", exact_x, exact_grad), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(grad_bias, exact_grad.sum((0, 1)), rtol=1e-4, atol=1e-4)
    assert np.any(np.asarray(grad_kernel) != np.asarray(grad_kernel.astype(jnp.bfloat16), np.float32))


def test_outputs_are_seen_as_asked():
    layer = linear(16, 24, rngs=nnx.Rngs(0), dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(2), (2, 5, 16))
    seen = product(x, layer, None, (3, 2, 4))
    np.testing.assert_array_equal(seen, product(x, layer).reshape(2, 5, 3, 2, 4))
