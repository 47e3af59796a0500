"""Names for the axes of every parameter; a configuration maps them to mesh axes, the model never does.

`embed` is a width, `mlp` and `heads` are what tensor parallelism may split, `layers` is the stacked axis of the
scanned blocks. None stays whole.
"""

from __future__ import annotations

import re

Axes = tuple[str | None, ...]

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
