"""Where arrays live: one mesh of devices, and two mappings from the model's logical axes to it.

The model names the axes of its parameters ("embed", "mlp", "heads", "layers"); a configuration maps those names to
mesh axes, once for storage (parameters and optimizer state between steps) and once for compute (parameters while a
step uses them). Plain data parallelism, FSDP and tensor parallelism are three settings of the same two tables. Rows
of a batch are always split over the data and fsdp axes together.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ramen_jax.console import USAGE, UserError

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))

LogicalAxes = Callable[[tuple[str, ...], int], tuple[str | None, ...]]


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
    mesh = jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.data.rows_per_step // config.optimizer.accumulate
    if rows % shards:
        raise UserError(
            f"config.data.rows_per_step / config.optimizer.accumulate = {rows} rows cannot be split over {shards} "
            f"devices (data x fsdp), expected a multiple, e.g. rows_per_step = "
            f"{max(1, round(rows / shards)) * shards * config.optimizer.accumulate}",
            USAGE,
        )
    return mesh


def flat_names(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, "encoder/blocks/attention/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def tree_shardings(tree: Any, mesh: Mesh, mapping: Mapping[str, str], logical_axes: LogicalAxes) -> Any:
    """A NamedSharding for every leaf of a parameter tree, or of a tree that nests parameter trees (optimizer state).

    Axes that the mapping leaves out, that a mesh axis already took, or whose size the mesh axis does not divide
    stay whole; scalars are replicated.
    """

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        axes: list[str | None] = []
        if leaf.ndim:
            for size, name in zip(leaf.shape, logical_axes(names, leaf.ndim), strict=True):
                target = mapping.get(name, "") if name else ""
                usable = target and target not in axes and size % mesh.shape[target] == 0
                axes.append(target if usable and mesh.shape[target] > 1 else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put_rows(rows: Any, mesh: Mesh) -> Any:
    """This process's rows (numpy) as global arrays, split over data x fsdp along their first axis."""
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), rows
    )


def table(tree: Any, logical_axes: LogicalAxes) -> str:
    """One line per parameter: path, shape, dtype, logical axes, how it is split. Ends with the total."""
    lines, total = [], 0
    for name, leaf in flat_names(tree).items():
        axes = logical_axes(tuple(name.split("/")), leaf.ndim) if leaf.ndim else ()
        total += leaf.size
        spec = getattr(leaf.sharding, "spec", PartitionSpec())
        logical = ",".join(axis or "-" for axis in axes)
        lines.append(
            f"{name}\t{'x'.join(map(str, leaf.shape)) or 'scalar'}\t{leaf.dtype}\t({logical})\t{spec}"
        )
    return "\n".join([*lines, f"total\t{total:,}"]) + "\n"
