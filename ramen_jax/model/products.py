"""The products of a block, and all that its devices tell each other for them.

Between steps a kernel may lie split over devices (FSDP). It is cast to the dtype of the product and gathered just
before it, layer by layer. Its gradient is formed in float32, summed over the devices that hold other rows, and each
device receives the part that it stores. Tensor parallelism splits the outputs of the layers that widen a token (`qkv`,
by heads, and `mlp_inner`) and the inputs of those that narrow it again (`project`, `mlp_outer`): the results of the
latter and, backward, the gradients of what the former were given are summed over its devices, two and two per block.

All of this is written out in `shard_map` instead of left to the compiler, so it is the same on every backend.

Shape letters: B rows, L tokens, I inputs, O outputs (of qkv three axes: 3, heads, head width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from ramen_jax.attention.attention import HEADS, ROWS, SAVED
from ramen_jax.model.layers import bias_of

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Place:
    """Where the kernel of one layer lies: the mesh axis, or None, of each of its axes.

    Attributes:
        stored: between steps.
        used: in a step: the tensor axis or None.
    """

    mesh: Mesh
    stored: Axes
    used: Axes

    def seen_as(self, view: tuple[int, ...]) -> Place:
        """With outputs seen as several axes, of which tensor parallelism splits the last but one.

        A cut of the flat outputs would be no cut of these: only the inputs can stay split.
        """
        rest = (None,) * (len(view) - 2)
        return replace(
            self,
            stored=(self.stored[0], *rest, None, None),
            used=(self.used[0], *rest, self.used[1], None),
        )

    @property
    def moves(self) -> Iterator[tuple[int, str | None, str | None]]:
        """(axis, stored over, used over) where the two differ."""
        for axis, (stored, used) in enumerate(zip(self.stored, self.used, strict=True)):
            if stored != used:
                yield axis, stored, used

    def gather(self, kernel: jax.Array, dtype: Any) -> jax.Array:
        """As it is stored -> as it is used."""
        for axis, _, used in self.moves:
            kernel = self._own(kernel, axis, used) if used else kernel
        kernel = kernel.astype(dtype)
        for axis, stored, _ in self.moves:
            kernel = jax.lax.all_gather(kernel, stored, axis=axis, tiled=True) if stored else kernel
        return kernel

    def scatter(self, grad: jax.Array) -> jax.Array:
        """A gradient as the kernel is used, of this device's rows -> as it is stored, of all rows."""
        for axis, stored, _ in self.moves:
            if stored in ROWS:
                grad = jax.lax.psum_scatter(grad, stored, scatter_dimension=axis, tiled=True)
            elif stored:
                grad = self._own(grad, axis, stored)
        grad = self.over_rows(grad, but=self.stored)
        for axis, _, used in self.moves:
            grad = jax.lax.all_gather(grad, used, axis=axis, tiled=True) if used else grad
        return grad

    def over_rows(self, part: jax.Array, but: Axes = ()) -> jax.Array:
        """The sum over the devices that hold other rows."""
        axes = tuple(axis for axis in ROWS if self.mesh.shape[axis] > 1 and axis not in but)
        return jax.lax.psum(part, axes) if axes else part

    def _own(self, array: jax.Array, axis: int, over: str) -> jax.Array:
        size = array.shape[axis] // self.mesh.shape[over]
        return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(over) * size, size, axis)


@dataclass(frozen=True)
class Places:
    """The places of kernels by "side/layer" ("encoder/qkv"); of a side, by layer.

    A kernel without a place is used as it lies; the compiler then decides what devices tell each other.
    """

    of: tuple[tuple[str, Place], ...] = ()

    def side(self, name: str) -> Places:
        start = name + "/"
        return Places(
            tuple((key.removeprefix(start), place) for key, place in self.of if key.startswith(start))
        )

    def __getitem__(self, layer: str) -> Place | None:
        return dict(self.of).get(layer)


ANYWHERE = Places()


def product(
    x_BxLxI: jax.Array, layer: nnx.Linear, place: Place | None = None, view: tuple[int, ...] = ()
) -> jax.Array:
    """[B, L, I] -> [B, L, O]: what the layer gives. Gradients of kernel and bias are float32 sums, never rounded.

    Args:
        place: where the kernel lies; None: on one device, or wherever the compiler puts it.
        view: axes that the outputs are seen as, e.g. (3, heads, head width); (): O.
    """
    kernel, bias = layer.kernel[...], bias_of(layer)
    x_BxLxI = x_BxLxI.astype(layer.dtype)
    if place is None or place.mesh.size == 1:
        y = _product(_Alone(), x_BxLxI, kernel, bias)
        return y.reshape(*y.shape[:-1], *view) if view else y
    if view:
        place, kernel, bias = place.seen_as(view), kernel.reshape(-1, *view), bias.reshape(view)
    return _product(_Together(place), x_BxLxI, kernel, bias)


@dataclass(frozen=True)
class _Alone:
    """The three products of a layer on one device."""

    def forward(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> (result, the kernel as it was used)."""
        used = kernel.astype(x.dtype)
        return _add(_apply(x, used), bias), used

    def backward(self, x: jax.Array, used: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
        return _pull_input(grad, used), _pull_kernel(x, grad), _pull_bias(grad, used)


@dataclass(frozen=True)
class _Together:
    """The same on the devices of a mesh."""

    place: Place

    @property
    def specs(self) -> dict[str, PartitionSpec]:
        stored, used = self.place.stored, self.place.used
        return {
            "x": PartitionSpec(ROWS, None, used[0]),
            "y": PartitionSpec(ROWS, None, *used[1:]),
            "stored": PartitionSpec(*stored),
            "used": PartitionSpec(*used),
            "bias": PartitionSpec(*used[1:]),
        }

    def forward(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        def local(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
            used = self.place.gather(kernel, x.dtype)
            y = _apply(x, used)
            if self.place.used[
                0
            ]:  # kept for the backward pass, where a block is recomputed: told once is enough
                y = checkpoint_name(jax.lax.psum(y, HEADS), SAVED)
            return _add(y, bias), used

        return self._on_each(local, ("x", "stored", "bias"), ("y", "used"))(x, kernel, bias)

    def backward(self, x: jax.Array, used: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
        def local(x: jax.Array, used: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
            grad_x = _pull_input(grad, used)
            grad_x = jax.lax.psum(grad_x, HEADS) if any(self.place.used[1:]) else grad_x
            grad_bias = self.place.over_rows(_pull_bias(grad, used))
            return grad_x, self.place.scatter(_pull_kernel(x, grad)), grad_bias

        return self._on_each(local, ("x", "used", "y"), ("x", "stored", "bias"))(x, used, grad)

    def _on_each(
        self, local: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> Callable[..., Any]:
        return jax.shard_map(
            local,
            mesh=self.place.mesh,
            in_specs=tuple(self.specs[name] for name in inputs),
            out_specs=tuple(self.specs[name] for name in outputs),
            check_vma=False,  # what differs between devices is written above, and tested
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: _Alone | _Together, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return how.forward(x, kernel, bias)[0]


def _product_forward(
    how: _Alone | _Together, x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y, used = how.forward(x, kernel, bias)
    return y, (x, used)


def _product_backward(
    how: _Alone | _Together, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, ...]:
    return how.backward(*saved, grad)


_product.defvjp(_product_forward, _product_backward)


def _apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _add(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _pull_input(grad: jax.Array, kernel: jax.Array) -> jax.Array:
    own = tuple(range(1, kernel.ndim))
    theirs = tuple(range(grad.ndim - len(own), grad.ndim))
    return jax.lax.dot_general(grad, kernel, ((theirs, own), ((), ())))


def _pull_kernel(x: jax.Array, grad: jax.Array) -> jax.Array:
    lead = tuple(range(x.ndim - 1))

    def in_float32(grad: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dot_general(grad, x, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)

    def of_what_is_there(grad: jax.Array, x: jax.Array) -> jax.Array:
        # Else the TPU's compiler makes x, a GELU of thousands of values, anew inside of the product: by its own figures
        # that is slower (two blocks of base: 6.16 million cycles instead of 5.78), and it takes four times as long to
        # compile.
        return in_float32(grad, jax.lax.optimization_barrier(x))

    def widened(grad: jax.Array, x: jax.Array) -> jax.Array:
        return in_float32(grad.astype(jnp.float32), x.astype(jnp.float32))

    if x.dtype == jnp.float32:
        flipped = in_float32(grad, x)
    else:  # the matrix products of CPUs have results of the type of their factors
        flipped = jax.lax.platform_dependent(grad, x, cpu=widened, default=of_what_is_there)
    return jnp.moveaxis(flipped, -1, 0)


def _pull_bias(grad: jax.Array, kernel: jax.Array) -> jax.Array:
    lead = tuple(range(grad.ndim - kernel.ndim + 1))
    return jnp.sum(grad.astype(jnp.float32), axis=lead)
