"""One attention function for every backend: `attention(q, k, v, segment_ids, backend=...)`.

Tokens attend to the tokens of their own segment. Segment 0 is padding and attends to itself only, so no row of
scores is ever fully masked and no gradient crosses a segment: foreign gradients are exactly zero.

Every backend gives the same results to rounding and leaves out the pairs of foreign segments:

    dense      all scores at once; the oracle, and every backend's way for rows of at most DENSE_LENGTH tokens
    blockwise  CPU: tiles that follow the segments
    splash     TPU: JAX's splash attention
    triton     GPU: a flash kernel in Pallas (gpu.py)

The backend comes from the devices the program is made for (`backend_for`), never from those of the process that
traces it. With a mesh, rows and heads are split before the backend is called, which then sees the shapes of one device.

Shape letters: B rows, L tokens, H heads, D head width.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ramen_jax.attention import blockwise, dense, gpu, splash
from ramen_jax.console import USAGE, UserError, close_names

DENSE_LENGTH = (
    128  # longer rows take the backend's own way: already at 401 tokens it is twice as fast on a CPU
)
SAVED = dense.SAVED
ROWS, HEADS = ("data", "fsdp"), "tensor"  # mesh axes
AMPERE = 8.0  # the least compute capability that Pallas makes kernels for

BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "dense": dense.attend,
    "blockwise": blockwise.attend,
    "splash": splash.attend,
    "triton": gpu.attend,
}
PLATFORMS = {"cpu": "blockwise", "tpu": "splash", "gpu": "triton", "cuda": "triton", "rocm": "triton"}


def backend_for(platform: str) -> str:
    """The backend of a device's platform ("cpu", "tpu", "gpu", "cuda", "rocm").

    Raises:
        UserError: a platform that no backend was written for.
    """
    if platform not in PLATFORMS:
        raise UserError(
            f"no attention for devices of platform {platform!r}; {close_names(platform, PLATFORMS)}", USAGE
        )
    return PLATFORMS[platform]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, *, backend: str = "blockwise"
) -> jax.Array:
    """Softmax attention within segments.

    Args:
        q, k, v: [B, L, H, D], any float dtype; scores and softmax are float32.
        segment_ids: [B, L] int32, or None when every token belongs to one segment. Any order is right; most pairs are
            left out where the tokens of a segment stand together.
        backend: one of BACKENDS.

    Returns:
        [B, L, H, D] in the dtype of v.

    Raises:
        UserError: an unknown backend, or one that would ignore the segments.
    """
    check_backend(backend)
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    if q.shape[1] <= DENSE_LENGTH:
        backend = "dense"
    return BACKENDS[backend](q, k, v, segment_ids)


def check_backend(backend: str) -> None:
    """UserError where `backend` is not one of BACKENDS."""
    if backend == "cudnn":
        raise UserError(
            "attention backend 'cudnn' knows no segments: tokens of one view would attend to those of another; "
            f"{close_names('', BACKENDS)}",
            USAGE,
        )
    if backend not in BACKENDS:
        raise UserError(f"unknown attention backend {backend!r}; {close_names(backend, BACKENDS)}", USAGE)


@dataclass(frozen=True)
class Attention:
    """The attention of one program: which backend, over which devices.

    Attributes:
        backend: one of BACKENDS.
        mesh: whose axes `data` and `fsdp` split the rows and `tensor` the heads; None: no splitting here.
    """

    backend: str = "blockwise"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend)

    @classmethod
    def on(cls, mesh: Mesh) -> Attention:
        """For the devices of a mesh, present or not. Those too old for the kernel do without; that is said."""
        device: Any = mesh.devices.flat[0]
        backend = backend_for(device.platform)
        capability = getattr(device, "compute_capability", "")  # "7.5" of NVIDIA's devices, "gfx90a" of AMD's
        if backend == "triton" and re.fullmatch(r"\d+\.\d+", capability) and float(capability) < AMPERE:
            print(
                f"WARNING: {device.device_kind} has compute capability {capability}, the attention kernel for GPUs "
                f"needs {AMPERE}: plain operations in its place, which take longer",
                file=sys.stderr,
                flush=True,
            )
            backend = PORTABLE.backend
        return cls(backend, mesh)

    @property
    def row_shards(self) -> int:
        """Over how many devices the rows are split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in ROWS)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """`attention` on every device's own rows and heads.

        Raises:
            UserError: rows or heads that the mesh does not divide; says which number would do.
        """
        if self.mesh is None or self.mesh.size == 1:
            return attention(q, k, v, segment_ids, backend=self.backend)
        if segment_ids is None:
            segment_ids = jnp.ones(q.shape[:2], jnp.int32)
        for found, parts, what, axes in (
            (q.shape[0], self.row_shards, "rows", "data x fsdp"),
            (q.shape[2], self.mesh.shape[HEADS], "attention heads", "tensor"),
        ):
            if found % parts:
                raise UserError(
                    f"{found} {what} do not divide over {axes} = {parts} devices; {-(-found // parts) * parts} would",
                    USAGE,
                )
        split = PartitionSpec(ROWS, None, HEADS, None)

        def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
            return attention(q, k, v, segment_ids, backend=self.backend)

        # Every device does its own share and speaks to no other: there is nothing whose replication could be checked.
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(split, split, split, PartitionSpec(ROWS, None)),
            out_specs=split,
            check_vma=False,
        )(q, k, v, segment_ids)


PORTABLE = Attention()  # plain XLA operations: right on every platform, fast on a CPU
