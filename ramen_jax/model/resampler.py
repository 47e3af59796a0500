"""The scale resampler: bilinear resampling, then four linear experts mixed by a gate that knows the scale.

Resampling is linear and acts on each channel alone, and so do the experts on each pixel. Hence the collapsed
algebra (exact, and the reason this code is fast): resample the C raw channels with the matrices of
`ramen_jax.sampling`, and fold projector and experts into one small matrix. No [.., H, W, D] array at native
resolution ever exists.

With views of different scales in one batch the gate differs from token to token. The fold keeps one matrix for
all of them by moving the gate to the input: a token is [x, w1 x, .., w4 x, w1, .., w4] (K = 5C + 4 numbers).

Shape letters: C bands, D features, K = 5C + 4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.model.encodings import sincos
from ramen_jax.model.layers import KERNEL_INIT, linear

EXPERTS = 4
MIN_TEMPERATURE = 1e-3
INITIAL_TEMPERATURE = 0.7
HIGHEST = jax.lax.Precision.HIGHEST


class ScaleResampler(nnx.Module):
    """Gate and experts of one side (encoder or decoder); official ramen_utils.py `ScaleResampler`."""

    def __init__(self, dim: int, *, encodings: str = "float32", rngs: nnx.Rngs):
        self.dim = dim
        self.encodings = encodings
        bound = dim**-0.5
        keys = jax.random.split(rngs.params(), EXPERTS)
        self.kernels = nnx.Param(jnp.stack([KERNEL_INIT(key, (dim, dim)) for key in keys]))
        self.biases = nnx.Param(
            jax.random.uniform(rngs.params(), (EXPERTS, dim), minval=-bound, maxval=bound)
        )
        self.gate_inner = linear(dim, dim // 4, rngs=rngs)
        self.gate_outer = linear(dim // 4, EXPERTS, rngs=rngs)
        self.temperature = nnx.Param(jnp.full((), INITIAL_TEMPERATURE, jnp.float32))

    def gate(self, scale: jax.Array) -> jax.Array:
        """[...] scales (GSD before over GSD after) -> [..., 4] expert weights, float32, summing to 1."""
        code = sincos(jnp.log(scale), self.dim, self.encodings)
        logits = self.gate_outer(jax.nn.gelu(self.gate_inner(code), approximate=False))
        return jax.nn.softmax(logits / jnp.maximum(self.temperature[...], MIN_TEMPERATURE), axis=-1)

    def fold_encoder(self, projection_CxD: jax.Array) -> jax.Array:
        """Projector and experts as one matrix [K, D] for the input of `expand`."""
        experts = jnp.einsum("cd,nde->nce", projection_CxD, self.kernels[...], precision=HIGHEST)
        return jnp.concatenate(
            [projection_CxD, experts.reshape(-1, projection_CxD.shape[1]), self.biases[...]], axis=0
        )

    def expand(self, values: jax.Array, weights: jax.Array) -> jax.Array:
        """[..., C] resampled channels and [..., 4] gate weights -> [..., K] input of the folded matrix."""
        gated = weights[..., :, None] * values[..., None, :]
        return jnp.concatenate([values, gated.reshape(*values.shape[:-1], -1), weights], axis=-1)

    def fold_decoder(self, projection_CxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Experts and transposed projector: ([D, 5C] matrix, [4, C] bias of each expert)."""
        experts = jnp.einsum("nde,ce->dnc", self.kernels[...], projection_CxD, precision=HIGHEST)
        identity = projection_CxD.T[:, None, :]
        matrix = jnp.concatenate([identity, experts], axis=1)
        bias = jnp.einsum("ne,ce->nc", self.biases[...], projection_CxD, precision=HIGHEST)
        return matrix.reshape(self.dim, -1), bias

    def combine(self, products: jax.Array, weights: jax.Array, bias_4xC: jax.Array) -> jax.Array:
        """[..., 5C] products with the decoder's matrix and [..., 4] gate weights -> [..., C]."""
        parts = products.reshape(*products.shape[:-1], EXPERTS + 1, -1)
        gated = jnp.einsum("...n,...nc->...c", weights, parts[..., 1:, :], precision=HIGHEST)
        return parts[..., 0, :] + gated + jnp.einsum("...n,nc->...c", weights, bias_4xC, precision=HIGHEST)
