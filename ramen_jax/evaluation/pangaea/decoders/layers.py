"""The layers that every decoder is made of, channels-last, with PyTorch's initialisation and conventions.

Shape letters: B places, H, W rows and columns, D or C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

EPS = 1e-5
MOMENTUM = 0.1
HIGHEST = jax.lax.Precision.HIGHEST
Size = tuple[int, ...]  # rows, columns
Maps = jax.Array | Sequence[jax.Array]


def uniform(key: jax.Array, shape: Sequence[int], fan_in: int) -> jax.Array:
    """PyTorch's default for weights and biases: uniform in +-1/sqrt(fan_in), float32."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def per_channel(vector_C: jax.Array, ndim: int) -> jax.Array:
    """[C] -> [1, ..., 1, C], to meet an array of `ndim` axes."""
    return vector_C.reshape((1,) * (ndim - 1) + vector_C.shape)


class Dense(nnx.Module):
    """The same linear map at every place, [..., inputs] -> [..., outputs]: a dense layer or a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(uniform(rngs.params(), (inputs, outputs), inputs))
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), inputs))

    def product(self, x: jax.Array) -> jax.Array:
        """The layer without its bias."""
        return jnp.matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _with_bias(self.product(x), self.bias)


class Conv3(nnx.Module):
    """3x3 convolution, zero-padded, [B, H, W, inputs] -> [B, H, W, outputs]; several maps as `conv3_of_maps`."""

    def __init__(self, inputs: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(uniform(rngs.params(), (3, 3, inputs, outputs), 9 * inputs))
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), 9 * inputs))

    def product(self, x: Maps) -> jax.Array:
        """The layer without its bias."""
        maps = [x] if isinstance(x, jax.Array) else x
        return conv3_of_maps([each.astype(self.dtype) for each in maps], self.kernel[...].astype(self.dtype))

    def __call__(self, x: Maps) -> jax.Array:
        return _with_bias(self.product(x), self.bias)


def conv3_of_maps(maps: Sequence[jax.Array], kernel_3x3xCxD: jax.Array) -> jax.Array:
    """`conv3` of maps resized to the first one's size and joined on their channels, [B, h_i, w_i, C_i] -> [B, H, W, D].

    Resizing is linear and a tap of the kernel does not depend on the place, so the products are made at each map's own
    size and interpolated after: a sixteenth of the work where a map is four times as coarse.
    """
    size = maps[0].shape[1:3]
    kernels = jnp.split(kernel_3x3xCxD, np.cumsum([x.shape[-1] for x in maps])[:-1], axis=2)
    parts = [
        conv3(x, kernel) if x.shape[1:3] == size else _conv3_of_resized(x, kernel, size)
        for x, kernel in zip(maps, kernels, strict=True)
    ]
    return functools.reduce(jnp.add, parts)


def _conv3_of_resized(x_BxhxwxC: jax.Array, kernel_3x3xCxD: jax.Array, size: Size) -> jax.Array:
    """`conv3(resize(x, size), kernel)`."""
    batch, height, width, channels = x_BxhxwxC.shape
    down_Hx3h, across_Wx3w = (
        jnp.asarray(_taps(old, new), x_BxhxwxC.dtype) for old, new in zip((height, width), size, strict=True)
    )
    # Columns of taps first, so that those of a place lie beside one another and are summed in one product.
    kernel_Cx9D = jnp.transpose(kernel_3x3xCxD, (2, 1, 0, 3)).reshape(channels, -1)
    y_Bxhx3wx3D = jnp.matmul(x_BxhxwxC, kernel_Cx9D).reshape(batch, height, 3 * width, -1)
    y_BxhxWx3xD = jnp.einsum("Wk,bhkd->bhWd", across_Wx3w, y_Bxhx3wx3D, precision=HIGHEST).reshape(
        batch, height, size[1], 3, -1
    )
    y_Bx3hxWxD = jnp.swapaxes(y_BxhxWx3xD, 2, 3).reshape(batch, 3 * height, size[1], -1)
    return jnp.einsum("Hk,bkWd->bHWd", down_Hx3h, y_Bx3hxWxD, precision=HIGHEST)


@cache
def _taps(old: int, new: int) -> np.ndarray:
    """[new, 3 old] float64: what tap t of place j of the coarse side adds to place i of the fine one, at [i, 3 j + t].

    Tap t looks at fine place i + t - 1, and finds zero beyond the border.
    """
    shifted = [np.eye(new, k=tap - 1) @ _bilinear(old, new) for tap in range(3)]
    return np.stack(shifted, axis=-1).reshape(new, 3 * old)


@jax.custom_vjp
def conv3(x_BxHxWxC: jax.Array, kernel_3x3xCxD: jax.Array) -> jax.Array:
    """3x3 convolution, zero-padded, [B, H, W, C] -> [B, H, W, D].

    Its gradient by the kernel is, for XLA, a convolution with a kernel as large as the image, for which a CPU has no
    good way (a fifth of the speed of the others at 128 x 128 pixels): there it is three matrix products.
    """
    return _convolution(x_BxHxWxC, kernel_3x3xCxD)


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv3_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolution(x, kernel), (x, kernel)


def _conv3_backward(kept: tuple[jax.Array, jax.Array], dy_BxHxWxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    mirrored = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    by_kernel = jax.lax.platform_dependent(x, dy_BxHxWxD, cpu=_by_products, default=_by_convolution)
    return _convolution(dy_BxHxWxD, mirrored), by_kernel


def _by_convolution(x: jax.Array, dy: jax.Array) -> jax.Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
    (found,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel), shape)(dy)
    return found


def _by_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Each row of taps at once: x against three shifted copies of dy, side by side on the channels."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side_by_side = jnp.concatenate([padded[:, :, 2 - tap : 2 - tap + width] for tap in range(3)], axis=-1)
    rows = [
        jnp.einsum("bhwc,bhwd->cd", x, side_by_side[:, 2 - tap : 2 - tap + height]).reshape(channels, 3, -1)
        for tap in range(3)
    ]
    return jnp.swapaxes(jnp.stack(rows), 1, 2)


conv3.defvjp(_conv3_forward, _conv3_backward)


class Double(nnx.Module):
    """Transposed convolution 2x2, stride 2, width kept: [B, H, W, C] -> [B, 2H, 2W, C].

    The windows do not overlap, so it is one matrix [C, 4 C] at every pixel and a reordering. PyTorch takes the fan-in
    of its transposed kernel from the output side: 4 C.
    """

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(uniform(rngs.params(), (width, 2, 2, width), 4 * width))
        self.bias = nnx.Param(uniform(rngs.params(), (width,), 4 * width))

    def product(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """The layer without its bias."""
        batch, height, width, channels = x_BxHxWxC.shape
        kernel = self.kernel[...].reshape(channels, -1).astype(self.dtype)
        y = jnp.matmul(x_BxHxWxC.astype(self.dtype), kernel).reshape(batch, height, width, 2, 2, channels)
        return jnp.swapaxes(y, 2, 3).reshape(batch, 2 * height, 2 * width, channels)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return _with_bias(self.product(x_BxHxWxC), self.bias)


def _with_bias(y: jax.Array, bias: nnx.Param) -> jax.Array:
    return y + per_channel(bias[...], y.ndim).astype(y.dtype)


Layer = Dense | Conv3 | Double


class BatchNorm(nnx.Module):
    """A layer's product, its bias and BatchNorm over all axes but the last; PyTorch's conventions.

    In training the batch's mean and biased variance normalise, and the running ones move by 0.1 towards its mean and
    unbiased variance. The layer's bias moves with that mean and leaves the result as it is: it is added to the running
    mean only, so that its gradient is exactly zero. (Computed, it is rounding noise, which Adam would enlarge to whole
    steps.) Over sharded arrays the means are global: synchronised by construction.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any, layer: Layer, train: bool) -> jax.Array:
        """What `layer` takes, through it and normalised; statistics in float32, the result in the layer's dtype."""
        y = layer.product(x)
        values, offset = y.astype(jnp.float32), layer.bias[...]
        if train:
            mean = _mean(values)
            # Centred before it is scaled: pooled maps of a small batch differ by far less than their mean.
            centred = values - per_channel(mean, y.ndim)
            var = _mean(jnp.square(centred))
            count = y.size // y.shape[-1]
            self._move(mean + offset, var * (count / max(count - 1, 1)))
        else:
            centred = values - per_channel(self.mean[...] - offset, y.ndim)
            var = self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + EPS)
        return (centred * per_channel(factor, y.ndim) + per_channel(self.bias[...], y.ndim)).astype(y.dtype)

    def _move(self, mean: jax.Array, unbiased: jax.Array) -> None:
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * jax.lax.stop_gradient(batch)
        self.batches[...] = self.batches[...] + 1


def _mean(x: jax.Array) -> jax.Array:
    """The mean over all axes but the last, one axis at a time: a float32 sum over fewer entries rounds less."""
    while x.ndim > 1:
        x = jnp.mean(x, axis=-2)
    return x


class ConvNorm(nnx.Module):
    """Convolution (1x1 or 3x3) of what it takes, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dtype: str, rngs: nnx.Rngs):
        layer: type[Dense] | type[Conv3] = Dense if kernel == 1 else Conv3
        self.conv = layer(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Any, train: bool) -> jax.Array:
        return jax.nn.relu(self.norm(x, self.conv, train))


def resize(x_BxHxWxC: jax.Array, size: Size) -> jax.Array:
    """Bilinear resize as PyTorch's `interpolate`: half-pixel centres, edges repeated, no antialiasing."""
    matrices = [_bilinear(old, new) for old, new in zip(x_BxHxWxC.shape[1:3], size, strict=True)]
    return _separable(x_BxHxWxC, *matrices)


def average_pool(x_BxHxWxC: jax.Array, size: Size) -> jax.Array:
    """Adaptive average pooling: cell i covers floor(i H / h) to ceil((i + 1) H / h); cells may overlap."""
    matrices = [_average(old, new) for old, new in zip(x_BxHxWxC.shape[1:3], size, strict=True)]
    return _separable(x_BxHxWxC, *matrices)


def max_pool(x_BxHxWxC: jax.Array) -> jax.Array:
    """Maximum over 2x2 pixels, stride 2; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in x_BxHxWxC.shape[1:3])
    # Of four slices: on a CPU the gradient of a window's maximum takes sixteen times as long.
    corners = [x_BxHxWxC[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
    return jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:]))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, shared: Sequence[int] = ()) -> jax.Array:
    """Inverted dropout; axes in `shared` are dropped as a whole. `key` None switches it off."""
    if key is None:
        return x
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def _separable(x_BxHxWxC: jax.Array, rows_hxH: np.ndarray, columns_wxW: np.ndarray) -> jax.Array:
    """Two small matrices, one per side; the identity is left out, and the side that shrinks more comes first."""

    def along_rows(x: jax.Array) -> jax.Array:
        return jnp.einsum("hH,bHwc->bhwc", rows_hxH.astype(x.dtype), x, precision=HIGHEST)

    def along_columns(x: jax.Array) -> jax.Array:
        return jnp.einsum("wW,bhWc->bhwc", columns_wxW.astype(x.dtype), x, precision=HIGHEST)

    steps = []
    for matrix, step in ((rows_hxH, along_rows), (columns_wxW, along_columns)):
        if not _is_identity(matrix):
            steps.append((matrix.shape[0] / matrix.shape[1], step))
    for _, step in sorted(steps, key=lambda pair: pair[0]):
        x_BxHxWxC = step(x_BxHxWxC)
    return x_BxHxWxC


def _is_identity(matrix: np.ndarray) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)))


@cache
def _bilinear(old: int, new: int) -> np.ndarray:
    """[new, old] float64: row i interpolates at (i + 0.5) old / new - 0.5, clamped to the first and last sample."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), low), 1 - (place - low))
    np.add.at(matrix, (np.arange(new), high), place - low)
    return matrix


@cache
def _average(old: int, new: int) -> np.ndarray:
    """[new, old] float64, each row the mean over its cell."""
    matrix = np.zeros((new, old))
    for cell in range(new):
        start, end = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix
