"""Where parameters live: names for their axes, and two mappings from these names to the mesh.

The model names the axes of its parameters; a configuration maps those names to mesh axes, once for storage
(parameters and optimizer state between steps) and once for compute (parameters while a step uses them). Plain data
parallelism, FSDP and tensor parallelism are three settings of the same two tables.

`embed` is a width, `mlp` and `heads` are what tensor parallelism may split, `qkv` are the outputs of that kernel (a cut
of which is no cut of its heads: stored whole, used by heads), `layers` is the stacked axis of the scanned blocks.
None stays whole, as do vectors, whose gathering would cost more than it saves.

The kernels of the stacked blocks are gathered layer by layer (`block_places`, ramen_jax.model.products); what is
outside of the stacks, a small part, once per step (`lent`).

A width that its mesh axis does not divide is no reason to keep a parameter whole on every device: in storage another
axis of the parameter takes its place. What no axis of divides is told, and refused where it is much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ramen_jax.console import USAGE, UserError
from ramen_jax.model.products import Place, Places

BLOCKS = "transformer/blocks/"
MOST_WHOLE = 0.2  # of the parameters that a mapping means to split; more is refused

Axes = tuple[str | None, ...]
LogicalAxes = Callable[[tuple[str, ...], int], Axes]

# Read from the top, the first match names the axes; `layers` is put before them inside a stack of blocks.
_PATTERNS: tuple[tuple[str, Axes], ...] = (
    (r"qkv/kernel$", ("embed", "qkv")),
    (r"project/kernel$", ("heads", "embed")),
    (r"(mlp_inner|inner)/kernel$", ("embed", "mlp")),
    (r"(mlp_outer|outer)/kernel$", ("mlp", "embed")),
    (r"resampler/kernels$", (None, "embed", None)),
    (r"(resampler/biases|_codes)$", (None, "embed")),
    (r"ltae/query$", (None, None)),
    (
        r"(ltae/(input|key|layers/\d+)|gate_(inner|outer)|decoder/embed|modality_embedding)/kernel$",
        ("embed", None),
    ),
    (r"(bias|scale|cls_token|mask_token|group_scale|group_bias)$", (None,)),
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
            if BLOCKS in name:
                axes = ("layers", *axes)
            if len(axes) != ndim:
                raise ValueError(f"parameter {name} has {ndim} axes, its pattern '{pattern}' names {axes}")
            return axes
    raise ValueError(f"parameter {name} has no logical axes; add a pattern to ramen_jax/parallel/rules.py")


def flat_names(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, "encoder/blocks/attention/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def layout(
    shape: tuple[int, ...],
    names: Axes,
    mapping: Mapping[str, str],
    sizes: Mapping[str, int],
    fall_back: bool = False,
) -> tuple[Axes, tuple[str, ...]]:
    """(mesh axis or None for each axis of a parameter, the mesh axes that it was meant to be split over and is not).

    The first axis that the mapping names and the mesh axis divides takes it. With `fall_back` the largest axis that is
    free and divisible takes what is left over; the stacked layers, which a scan cuts one by one, come last.
    """
    axes: list[str | None] = [None] * len(shape)
    meant = []
    for place, name in enumerate(names):
        target = mapping.get(name, "") if name else ""
        if not target or sizes[target] == 1:
            continue
        meant.append(target)
        if target not in axes and shape[place] % sizes[target] == 0:
            axes[place] = target
    for target in dict.fromkeys(meant):
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % sizes[target] == 0]
        if fall_back and target not in axes and free:
            axes[min(free, key=lambda i: (names[i] == "layers", -shape[i]))] = target
    return tuple(axes), tuple(target for target in dict.fromkeys(meant) if target not in axes)


def tree_shardings(
    tree: Any, mesh: Mesh, mapping: Mapping[str, str], logical_axes: LogicalAxes, *, fall_back: bool = False
) -> Any:
    """A NamedSharding for every leaf of a parameter tree, or of a tree that nests parameter trees (optimizer state).

    Axes that the mapping leaves out, that a mesh axis already took, or whose size the mesh axis does not divide
    stay whole, but see `layout` for `fall_back`; scalars are replicated.
    """

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        logical = logical_axes(names, leaf.ndim) if leaf.ndim else ()
        axes, _ = layout(leaf.shape, logical, mapping, mesh.shape, fall_back)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def block_places(
    params: Any, mesh: Mesh, storage: Mapping[str, str], compute: Mapping[str, str], logical_axes: LogicalAxes
) -> Places:
    """Where the kernels of the stacked blocks lie between steps and in a step; none for a model without stacks."""
    found = []
    for name, leaf in flat_names(params).items():
        side, _, rest = name.partition("/" + BLOCKS)
        layer, _, kind = rest.rpartition("/")
        if kind != "kernel":
            continue
        logical = logical_axes(tuple(name.split("/")), leaf.ndim)
        used = tuple("heads" if axis == "qkv" else axis for axis in logical)
        axes = (
            layout(leaf.shape, logical, storage, mesh.shape, fall_back=True)[0],
            layout(leaf.shape, used, compute, mesh.shape)[0],
        )
        found.append((f"{side}/{layer}", Place(mesh, *(each[1:] for each in axes))))
    return Places(tuple(found))


def lent(params: Any, stored: Any, used: Any) -> Any:
    """Parameters moved from their stored to their used shardings, and their gradients straight back.

    Those of the stacked blocks stay where they are.
    """

    def lend(path: Any, leaf: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:
        if BLOCKS in jax.tree_util.keystr(path, simple=True, separator="/") or stored == used:
            return leaf

        @jax.custom_vjp
        def move(leaf: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(leaf, used)

        def back(_: None, grad: jax.Array) -> tuple[jax.Array]:
            # Formed as the parameter was used and cut afterwards: else the compiler carries the cut back through the
            # arithmetic on small parameters, and devices hand each other hundreds of pieces of them.
            whole = jax.lax.with_sharding_constraint(grad, used)
            return (jax.lax.with_sharding_constraint(whole, stored),)

        move.defvjp(lambda leaf: (move(leaf), None), back)
        return move(leaf)

    return jax.tree_util.tree_map_with_path(lend, params, stored, used)


class Whole(NamedTuple):
    """What a mapping means to split over a mesh axis that divides none of its axes.

    `share`: of the numbers of all parameters that it means to split; `names`: the largest first.
    """

    share: float
    names: tuple[str, ...]


def kept_whole(
    params: Any, sizes: Mapping[str, int], mapping: Mapping[str, str], logical_axes: LogicalAxes
) -> Whole:
    """What stays whole in storage on a mesh of these sizes."""
    meant, whole = 0, dict[str, int]()
    for name, leaf in flat_names(params).items():
        if not leaf.ndim:
            continue
        logical = logical_axes(tuple(name.split("/")), leaf.ndim)
        if not any(sizes.get(mapping.get(axis or "", ""), 1) > 1 for axis in logical):
            continue
        meant += leaf.size
        if layout(leaf.shape, logical, mapping, sizes, fall_back=True)[1]:
            whole[name] = leaf.size
    return Whole(sum(whole.values()) / max(meant, 1), tuple(sorted(whole, key=lambda name: -whole[name])))


def refuse_whole(params: Any, mesh: Mesh, mapping: Mapping[str, str], logical_axes: LogicalAxes) -> Whole:
    """`kept_whole` on this mesh. UserError where it is more than MOST_WHOLE; says which mesh would do."""
    sizes = dict(mesh.shape)
    found = kept_whole(params, sizes, mapping, logical_axes)
    if found.share <= MOST_WHOLE:
        return found
    fitting = []
    for axis in ("fsdp", "tensor"):
        for size in range(sizes[axis] - 1, 0, -1):
            smaller = {**sizes, axis: size, "data": sizes["data"] * sizes[axis] // size}
            if (
                sizes[axis] % size == 0
                and kept_whole(params, smaller, mapping, logical_axes).share <= MOST_WHOLE
            ):
                fitting.append(
                    f"config.sharding.{axis} = {size} with config.sharding.data = {smaller['data']}"
                )
                break
    raise UserError(
        f"config.sharding keeps {found.share:.0%} of the parameters that it means to split whole on every device "
        f"(data = {sizes['data']}, fsdp = {sizes['fsdp']}, tensor = {sizes['tensor']} divide none of their axes; the "
        f"largest is {found.names[0]}), at most {MOST_WHOLE:.0%} may be; "
        + (" or ".join(fitting) + " would do" if fitting else "use a width that more devices divide"),
        USAGE,
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
