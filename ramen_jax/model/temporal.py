"""L-TAE, the lightweight temporal attention that turns a series into one feature vector per token.

After Garnot and Landrieu; official ltae.py. Four folds keep it small and exact:
- the input Dense is folded with projector and experts, so its input is the K numbers of the resampler;
- the first BatchNorm sees an affine function of those K numbers, hence its statistics follow from their mean and
  covariance, and no [.., T, D] array is needed to form them;
- that BatchNorm is folded into the same matrix;
- the learned query of each head is folded into its keys: D x 16 numbers instead of D x 256. The key bias adds
  the same score to every date and leaves the softmax as it is: its gradient is exactly zero.

Shape letters: R rows, N tokens per row, T dates, K folded input, D features, A heads (16), F = D / A.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.model.encodings import date_encoding
from ramen_jax.model.layers import bias_of, in_chunks, in_pieces, linear, sum_entries

HEADS = 16
KEY_DIM = 16
EPS = 1e-5
MOMENTUM = 0.1
CHUNK_VALUES = 1 << 25
HIGHEST = jax.lax.Precision.HIGHEST


class BatchStatistic(nnx.Variable):
    """A running statistic: part of the training state, never of the gradient."""


class MaskedBatchNorm(nnx.Module):
    """BatchNorm over all leading axes that counts only valid entries; PyTorch's conventions.

    Running statistics move by `MOMENTUM` towards the batch's mean and unbiased variance. A batch without any
    valid entry leaves them untouched. Over sharded arrays the sums are global: synchronised by construction.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = BatchStatistic(jnp.zeros(features))
        self.var = BatchStatistic(jnp.ones(features))
        self.batches = BatchStatistic(jnp.zeros((), jnp.int32))

    def affine(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The layer as x * factor + shift, given the statistics."""
        factor = self.scale[...] * jax.lax.rsqrt(var + EPS)
        return factor, self.bias[...] - mean * factor

    def stored(self) -> tuple[jax.Array, jax.Array]:
        return self.mean[...], self.var[...]

    def update(self, mean: jax.Array, var: jax.Array, count: jax.Array) -> None:
        """Move the running statistics towards those of a batch of `count` entries."""
        unbiased = var * count / jnp.maximum(count - 1, 1)
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            moved = (1 - MOMENTUM) * running[...] + MOMENTUM * jax.lax.stop_gradient(batch)
            running[...] = jnp.where(count > 0, moved, running[...])
        self.batches[...] = self.batches[...] + (count > 0)

    def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
        """[..., D] with [...] validity -> [..., D]; statistics of the batch when training."""
        if train:
            weight = valid[..., None].astype(jnp.float32)
            count = jnp.sum(weight)
            total = jnp.maximum(count, 1)
            mean = sum_entries(x * weight) / total
            centred = (x - mean.reshape((1,) * (x.ndim - 1) + mean.shape)) * weight
            var = sum_entries(jnp.square(centred)) / total
            self.update(mean, var, count)
        else:
            mean, var = self.stored()
        factor, shift = self.affine(mean, var)
        lead = (1,) * (x.ndim - 1)
        return x * factor.reshape(*lead, -1) + shift.reshape(*lead, -1)


class LTAE(nnx.Module):
    """Temporal attention over the dates of one token; shared by every modality with a series."""

    def __init__(self, dim: int, *, dropout: float, shards: int = 1, rngs: nnx.Rngs):
        self.dim = dim
        self.shards = shards  # devices that the rows are split over
        self.dropout = dropout
        normal = nnx.initializers.normal((2.0 / KEY_DIM) ** 0.5)
        self.input = linear(dim, dim, rngs=rngs)
        self.input_norm = MaskedBatchNorm(dim, rngs=rngs)
        self.group_scale = nnx.Param(jnp.ones(dim))
        self.group_bias = nnx.Param(jnp.zeros(dim))
        self.query = nnx.Param(normal(rngs.params(), (HEADS, KEY_DIM)))
        self.key = linear(dim, HEADS * KEY_DIM, rngs=rngs)
        self.key.kernel[...] = normal(rngs.params(), (dim, HEADS * KEY_DIM))
        widths = (dim, dim, 2 * dim, dim)
        self.layers = nnx.List([linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([MaskedBatchNorm(width, rngs=rngs) for width in widths[1:]])

    def __call__(
        self,
        inputs_RxNxTxK: jax.Array,
        folded_KxD: jax.Array,
        dates_RxNxT: jax.Array,
        valid_RxNxT: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """One vector per token, [R, N, D] float32.

        `valid` marks the dates that exist (False for padding in time and for padding tokens); they alone reach
        a statistic or the softmax. `key` drives the attention dropout; None switches it off.
        """
        matrix_KxD = jnp.matmul(folded_KxD, self.input.kernel[...], precision=HIGHEST)
        if train:
            inputs_RxNxTxK, factor, offset_D = self._by_batch(inputs_RxNxTxK, valid_RxNxT, matrix_KxD)
        else:
            mean, var = self.input_norm.stored()
            factor, shift = self.input_norm.affine(mean, var)
            offset_D = bias_of(self.input) * factor + shift
        matrix_KxD = matrix_KxD * factor[None]

        keep_RxNxTxA = jnp.ones((*valid_RxNxT.shape, HEADS), jnp.float32)
        if train and self.dropout > 0 and key is not None:
            keep = jax.random.bernoulli(key, 1 - self.dropout, keep_RxNxTxA.shape)
            keep_RxNxTxA = keep / (1 - self.dropout)

        def attend(inputs: jax.Array, dates: jax.Array, valid: jax.Array, keep: jax.Array) -> jax.Array:
            return self._attend(inputs, matrix_KxD, offset_D, dates, valid, keep)

        dates_count = valid_RxNxT.shape[2]
        pooled_RxNxD = in_chunks(
            attend,
            (inputs_RxNxTxK, dates_RxNxT, valid_RxNxT, keep_RxNxTxA),
            values_per_item=dates_count * self.dim,
            limit=CHUNK_VALUES,
            shards=self.shards,
        )
        token_valid_RxN = jnp.any(valid_RxNxT, axis=2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            pooled_RxNxD = jax.nn.relu(norm(layer(pooled_RxNxD), token_valid_RxN, train))
        return pooled_RxNxD

    def _by_batch(
        self, inputs_RxNxTxK: jax.Array, valid_RxNxT: jax.Array, matrix_KxD: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Centred inputs, factor and offset of the first BatchNorm by batch statistics; the running ones move.

        Centring the K inputs, and not the D outputs, lets the part of the gradient that BatchNorm removes cancel
        number by number instead of between two large sums.
        """
        weight = valid_RxNxT[..., None].astype(jnp.float32)
        count = jnp.sum(weight)
        total = jnp.maximum(count, 1)
        mean_K = sum_entries(inputs_RxNxTxK * weight) / total
        centred = inputs_RxNxTxK - mean_K[None, None, None]
        pieces = in_pieces(centred * weight)
        products = jnp.einsum("rpqj,rpqk->rpjk", pieces, pieces, precision=HIGHEST)
        covariance_KxK = jnp.sum(jnp.sum(products, axis=1), axis=0) / total
        var = jnp.sum(matrix_KxD * jnp.matmul(covariance_KxK, matrix_KxD, precision=HIGHEST), axis=0)
        var = jnp.maximum(var, 0.0)
        mean = jnp.matmul(mean_K, matrix_KxD, precision=HIGHEST) + bias_of(self.input)
        self.input_norm.update(mean, var, count)
        factor, _ = self.input_norm.affine(mean, var)
        return centred, factor, self.input_norm.bias[...]

    def _attend(
        self,
        inputs_RxNxTxK: jax.Array,
        matrix_KxD: jax.Array,
        offset_D: jax.Array,
        dates_RxNxT: jax.Array,
        valid_RxNxT: jax.Array,
        keep_RxNxTxA: jax.Array,
    ) -> jax.Array:
        lead = inputs_RxNxTxK.shape[:3]
        values = jax.nn.relu(jnp.matmul(inputs_RxNxTxK, matrix_KxD) + offset_D[None, None, None])
        values = self._group_norm(values.reshape(*lead, HEADS, -1), valid_RxNxT)
        values = values + date_encoding(dates_RxNxT, self.dim // HEADS)[..., None, :]
        key_DxAxQ = self.key.kernel[...].reshape(self.dim, HEADS, KEY_DIM)
        folded_DxA = jnp.einsum("daq,aq->da", key_DxAxQ, self.query[...], precision=HIGHEST) / KEY_DIM**0.5
        scores = jnp.matmul(values.reshape(*lead, self.dim), folded_DxA)
        scores = jnp.where(valid_RxNxT[..., None], scores, -jnp.inf)
        # A padding token has no date at all: its softmax is over zeros, and nothing reads the result.
        scores = jnp.where(jnp.any(valid_RxNxT, axis=2)[..., None, None], scores, 0.0)
        attention = jax.nn.softmax(scores, axis=2) * keep_RxNxTxA
        return jnp.einsum("rnta,rntaf->rnaf", attention, values).reshape(*lead[:2], self.dim)

    def _group_norm(self, values_RxNxTxAxF: jax.Array, valid_RxNxT: jax.Array) -> jax.Array:
        """GroupNorm with one group per head; statistics over the group's channels and all valid dates."""
        weight = valid_RxNxT[..., None, None].astype(jnp.float32)
        count = jnp.maximum(jnp.sum(weight, axis=2, keepdims=True), 1) * values_RxNxTxAxF.shape[-1]
        mean = jnp.sum(values_RxNxTxAxF * weight, axis=(2, 4), keepdims=True) / count
        centred = values_RxNxTxAxF - mean
        var = jnp.sum(jnp.square(centred) * weight, axis=(2, 4), keepdims=True) / count
        shape = (1, 1, 1, HEADS, -1)
        normal = centred * jax.lax.rsqrt(var + EPS)
        return normal * self.group_scale[...].reshape(shape) + self.group_bias[...].reshape(shape)
