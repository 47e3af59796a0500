"""The mesh of devices. Rows of a batch are always split over its data and fsdp axes together."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ramen_jax.console import USAGE, UserError

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of config.sharding over `devices` (default: all). UserError when the sizes do not fit their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.sharding[axis] for axis in MESH_AXES]
    fixed = int(np.prod([size for size in sizes if size > 0]))
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if int(np.prod(sizes)) != len(devices):
        found = ", ".join(f"{axis}={config.sharding[axis]}" for axis in MESH_AXES)
        raise UserError(
            f"config.sharding asks for {found}, but there are {len(devices)} devices: the product must be that number",
            USAGE,
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Numbers of the rows that this process's devices hold, of the `rows` of a step, ascending.

    Processes that a tensor axis joins hold the same rows.
    """
    pieces = NamedSharding(mesh, ROWS).addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({row for piece in pieces if piece for row in range(*piece[0].indices(rows))}))


def put_rows(rows: Any, mesh: Mesh, shapes: Any) -> Any:
    """This process's rows (numpy, those of `local_rows`) as global arrays of these shapes, split over data x fsdp."""
    sharding = NamedSharding(mesh, ROWS)

    def put(array: np.ndarray, whole: Any) -> jax.Array:
        local = (len(local_rows(mesh, whole.shape[0])), *whole.shape[1:])
        if np.shape(array) != local:
            raise ValueError(f"rows of shape {np.shape(array)}, the program is compiled for {local}")
        return jax.make_array_from_process_local_data(sharding, np.asarray(array), whole.shape)

    return jax.tree.map(put, rows, shapes)
