"""The mesh of devices. Rows of a batch are always split over its data and fsdp axes together."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ramen_jax.console import USAGE, UserError, one_line

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of config.sharding over `devices` (default: all).

    Devices of several slices, which only the data-centre network joins, are split by slice along the axis
    config.sharding.across_slices; all other axes stay within a slice, on its fast links.

    Raises:
        UserError: sizes that do not fit the number of devices, of slices, or both; says which would.
    """
    devices = present() if devices is None else devices
    sizes = _sizes(config, len(devices))
    slices, by_process = _slices(config.sharding.slices, devices)
    if slices == 1:
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return _mesh(grid)
    across = config.sharding.across_slices
    if sizes[across] % slices:
        fitting = [axis for axis in MESH_AXES[:2] if sizes[axis] % slices == 0]
        raise UserError(
            f"config.sharding.{across} = {sizes[across]} cannot be split over {slices} slices of devices; "
            + (
                f"config.sharding.across_slices = '{fitting[0]}' would do"
                if fitting
                else f"data or fsdp must be a multiple of {slices}"
            ),
            USAGE,
        )
    within = {**sizes, across: sizes[across] // slices}
    outside = {axis: slices if axis == across else 1 for axis in MESH_AXES}
    grid = mesh_utils.create_hybrid_device_mesh(
        tuple(within.values()),
        tuple(outside.values()),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )
    return _mesh(grid)


def present() -> list[jax.Device]:
    """The devices at hand, of all processes. UserError where there are none of those that JAX_PLATFORMS asks for."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where a plugin is missing
        told = one_line(str(error)) or "the plugin for them is not installed"
        raise UserError(f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}: {told}", USAGE) from None


def _mesh(grid: np.ndarray) -> Mesh:
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _sizes(config: ConfigDict, devices: int) -> dict[str, int]:
    """Devices along each axis. UserError where they do not make up `devices`."""
    asked = {axis: config.sharding[axis] for axis in MESH_AXES}
    rest = devices // math.prod(size for size in asked.values() if size > 0)
    sizes = {axis: rest if size == -1 else size for axis, size in asked.items()}
    if math.prod(sizes.values()) == devices:
        return sizes
    # The nearest that fits: tensor and fsdp as large as asked for where they divide, data what is left.
    tensor = math.gcd(devices, max(1, asked["tensor"]))
    fsdp = math.gcd(devices // tensor, max(1, asked["fsdp"]))
    found = ", ".join(f"{axis}={size}" for axis, size in asked.items())
    raise UserError(
        f"config.sharding asks for {found}, but there are {devices} devices: the product must be that number, e.g. "
        f"data={devices // tensor // fsdp}, fsdp={fsdp}, tensor={tensor}",
        USAGE,
    )


def _slices(asked: int, devices: Sequence[jax.Device]) -> tuple[int, bool]:
    """(number of slices, whether each of them is a process rather than what the devices tell)."""
    told = len({getattr(device, "slice_index", 0) for device in devices})
    processes = len({device.process_index for device in devices})
    if asked == 0:  # of GPUs every host counts as a slice, whatever joins them
        return (told, False) if devices[0].platform == "tpu" else (1, False)
    if asked in (1, told):
        return asked, False
    if asked == processes:
        return asked, True
    raise UserError(
        f"config.sharding.slices = {asked}, but the devices belong to {told} slices and {processes} processes: "
        "expected one of these numbers, 1, or 0 for what the devices tell",
        USAGE,
    )


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
    """This process's rows (numpy, those of `local_rows`) as global arrays of these shapes, split over data x fsdp.

    Raises:
        ValueError: rows of another shape or number than those of this process's devices.
    """
    sharding = NamedSharding(mesh, ROWS)

    def put(array: np.ndarray, whole: Any) -> jax.Array:
        numbers = local_rows(mesh, whole.shape[0])
        local = (len(numbers), *whole.shape[1:])
        if np.shape(array) != local:
            raise ValueError(f"rows of shape {np.shape(array)}, the program is compiled for {local}")
        place = {number: place for place, number in enumerate(numbers)}

        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            wanted = range(*(index[0] if index else slice(None)).indices(whole.shape[0]))
            return array[place[wanted[0]] : place[wanted[-1]] + 1]

        return jax.make_array_from_callback(whole.shape, sharding, of_device, dtype=whole.dtype)

    return jax.tree.map(put, rows, shapes)
