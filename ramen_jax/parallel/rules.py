"""Where parameters live: names for their axes, and two mappings from these names to the mesh.

The model names the axes of its parameters; a configuration maps those names to mesh axes, once for storage
(parameters and optimizer state between steps) and once for compute (parameters while a step uses them). Plain data
parallelism, FSDP and tensor parallelism are three settings of the same two tables.

`embed` is a width, `mlp` and `heads` are what tensor parallelism may split, `layers` is the stacked axis of the
scanned blocks. None stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]
LogicalAxes = Callable[[tuple[str, ...], int], Axes]

# Read from the top, the first match names the axes; `layers` is put before them inside a stack of blocks.
_PATTERNS: tuple[tuple[str, Axes], ...] = (
    (r"qkv/kernel$", ("embed", "heads")),
    (r"qkv/bias$", ("heads",)),
    (r"project/kernel$", ("heads", "embed")),
    (r"(mlp_inner|inner)/kernel$", ("embed", "mlp")),
    (r"(mlp_inner|inner)/bias$", ("mlp",)),
    (r"(mlp_outer|outer)/kernel$", ("mlp", "embed")),
    (r"resampler/kernels$", (None, "embed", None)),
    (r"(resampler/biases|_codes)$", (None, "embed")),
    (r"ltae/query$", (None, None)),
    (r"gate_(inner|outer)/bias$", (None,)),
    (
        r"(ltae/(input|key|layers/\d+)|gate_(inner|outer)|decoder/embed|modality_embedding)/kernel$",
        ("embed", None),
    ),
    (r"(bias|scale|cls_token|mask_token|group_scale|group_bias)$", ("embed",)),
    (r"temperature$", ()),
)


def logical_axes(path: tuple[str, ...], ndim: int) -> Axes:
    """The names of the axes of one parameter.

    Args:
        path: where it lives, for instance ("encoder", "transformer", "blocks", "qkv", "kernel"); a longer path
            that ends so (the optimizer's moments) is understood too.
        ndim: its number of axes.

    Raises:
        ValueError: a parameter no pattern names, or with another number of axes than its pattern.
    """
    name = "/".join(path)
    for pattern, axes in _PATTERNS:
        if re.search(pattern, name):
            if "transformer/blocks" in name:
                axes = ("layers", *axes)
            if len(axes) != ndim:
                raise ValueError(f"parameter {name} has {ndim} axes, its pattern '{pattern}' names {axes}")
            return axes
    raise ValueError(f"parameter {name} has no logical axes; add a pattern to ramen_jax/parallel/rules.py")


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
