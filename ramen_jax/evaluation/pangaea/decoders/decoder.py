"""Decoders as pure functions of plain dictionaries: `build` one by its name, `init` it, `apply` it.

    decoder = build("seg_upernet", widths=(768,) * 4, outputs=2)
    params, statistics = decoder.init(jax.random.key(0))
    logits, statistics = decoder.apply(params, statistics, levels, (512, 512), train=True, key=key)

`levels` are the encoder's maps, fine to coarse blocks, [B, h, w, D_i]; decoders of several dates take
[B, T, h, w, D_i]; a U-Net takes the pixels as its only level. Logits are [B, H, W, outputs] float32 at the label's
size, or [B, outputs] for a classification. `params` take gradients; `statistics` are BatchNorm's running ones, which
`apply` returns moved when `train` is set and as they were otherwise. Dropout needs `train` and a `key`.

Shape letters: B places, T dates, h, w grid, D_i channels of level i, H, W label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from flax import nnx

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.evaluation.pangaea.decoders.layers import Size
from ramen_jax.evaluation.pangaea.decoders.linear import LinearClassification, LinearSegmentation
from ramen_jax.evaluation.pangaea.decoders.temporal import (
    LinearTime,
    TemporalAttention,
    concatenation,
    difference,
)
from ramen_jax.evaluation.pangaea.decoders.unet import TOPOLOGY, UNet
from ramen_jax.evaluation.pangaea.decoders.upernet import UPerNet

Tree = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a decoder is made of. `head`: upernet, linear, classification or unet. `merge`: of the dates."""

    head: str
    merge: str = "single"
    regression: bool = False


KINDS: Mapping[str, Kind] = {
    "seg_upernet": Kind("upernet"),
    "seg_upernet_mt_linear": Kind("upernet", "linear"),
    "seg_upernet_mt_ltae": Kind("upernet", "ltae"),
    "seg_siamupernet_diff": Kind("upernet", "difference"),
    "seg_siamupernet_conc": Kind("upernet", "concatenation"),
    "reg_upernet": Kind("upernet", regression=True),
    "reg_upernet_mt_linear": Kind("upernet", "linear", regression=True),
    "reg_upernet_mt_ltae": Kind("upernet", "ltae", regression=True),
    "seg_linear": Kind("linear"),
    "seg_linear_mt": Kind("linear", "linear"),
    "cls_linear": Kind("classification"),
    "seg_unet": Kind("unet"),
    "seg_unet_mt": Kind("unet", "channels"),
    "seg_siamunet_diff": Kind("unet", "difference"),
    "seg_siamunet_conc": Kind("unet", "concatenation"),
    "reg_unet": Kind("unet", regression=True),
    "reg_unet_mt": Kind("unet", "channels", regression=True),
}


COMPARISONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "difference": difference,
    "concatenation": concatenation,
}


class Network(nnx.Module):
    """Dates merged into one map per level, then the head. A U-Net merges its dates itself."""

    def __init__(self, decoder: Decoder, *, rngs: nnx.Rngs):
        kind, widths = decoder.kind, decoder.widths
        self.merge = kind.merge if kind.head != "unet" else "single"
        if self.merge == "linear":
            self.time: LinearTime | TemporalAttention = LinearTime(decoder.dates, rngs=rngs)
        elif self.merge == "ltae":
            self.time = TemporalAttention(widths[0], dtype=decoder.dtype, rngs=rngs)
        elif self.merge == "concatenation":
            widths = tuple(2 * width for width in widths)
        self.head = _head(decoder, kind, widths, rngs)

    def __call__(
        self, levels: Sequence[jax.Array], size: Size, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        if self.merge in ("linear", "ltae"):
            keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(levels))]
            levels = [self.time(level, train, k) for level, k in zip(levels, keys, strict=True)]
        elif self.merge in COMPARISONS:
            levels = [COMPARISONS[self.merge](level) for level in levels]
        head_key = None if key is None else jax.random.fold_in(key, len(levels))
        return self.head(levels, size, train=train, key=head_key)


def _head(decoder: Decoder, kind: Kind, widths: tuple[int, ...], rngs: nnx.Rngs) -> Any:
    outputs, dtype = decoder.outputs, decoder.dtype
    if kind.head == "upernet":
        return UPerNet(
            widths,
            outputs,
            channels=decoder.channels,
            regression=kind.regression,
            dtype=dtype,
            rngs=rngs,
        )
    if kind.head == "linear":
        return LinearSegmentation(widths, outputs, dtype=dtype, rngs=rngs)
    if kind.head == "classification":
        return LinearClassification(widths, outputs, dtype=dtype, rngs=rngs)
    return UNet(
        widths[0],
        outputs,
        merge=kind.merge,
        dates=decoder.dates,
        topology=decoder.topology,
        dtype=dtype,
        rngs=rngs,
    )


@dataclass(frozen=True)
class Decoder:
    """One decoder with its sizes; made by `build`.

    Attributes:
        name: one of KINDS.
        widths: channels of each level; the bands, for a U-Net.
        outputs: channels of the logits: classes, 1 for a binary task of one logit or a regression.
        dates: length of the series, for decoders of several dates.
        channels: width of a UPerNet.
        topology: widths of a U-Net, fine to coarse.
        dtype: of activations and products; parameters, statistics and logits stay float32.
    """

    name: str
    widths: tuple[int, ...]
    outputs: int
    dates: int = 1
    channels: int = 512
    topology: tuple[int, ...] = TOPOLOGY
    dtype: str = "float32"

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def series(self) -> bool:
        """Whether levels carry a date axis, [B, T, h, w, D_i]."""
        return self.kind.merge != "single"

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh parameters (PyTorch's default initialisation) and statistics, nested dictionaries with text keys."""
        _, *states = nnx.split(Network(self, rngs=nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return _tree(states[0]), _tree(states[1])

    def shapes(self) -> tuple[Tree, Tree]:
        """What `init` gives, as shapes and dtypes; nothing is computed."""
        _, params, statistics = self._split
        return _tree(params), _tree(statistics)

    def apply(
        self,
        params: Tree,
        statistics: Tree,
        levels: Sequence[jax.Array],
        size: Size,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Logits at `size` rows and columns, and the running statistics after them.

        Raises:
            ValueError: a number, rank or width of levels that the decoder was not built for.
        """
        self._check(levels)
        graph, empty_params, empty_statistics = self._split
        network = nnx.merge(graph, _filled(empty_params, params), _filled(empty_statistics, statistics))
        logits = network(levels, size, train=train, key=key if train else None)
        if train:
            statistics = _tree(nnx.state(network, nnx.BatchStat))
        return logits, statistics

    @cached_property
    def _split(self) -> Any:
        network = nnx.eval_shape(lambda: Network(self, rngs=nnx.Rngs(0)))
        return nnx.split(network, nnx.Param, nnx.BatchStat)

    def _check(self, levels: Sequence[jax.Array]) -> None:
        expected = ("B", "T", "h", "w") if self.series else ("B", "h", "w")
        found = [level.shape for level in levels]
        if [shape[-1] for shape in found] != list(self.widths) or any(
            len(shape) != len(expected) + 1 for shape in found
        ):
            letters = ", ".join(expected)
            raise ValueError(
                f"{self.name} was built for levels [{letters}, D] of D = {self.widths}, found {found}"
            )


def build(name: str, widths: Sequence[int], outputs: int, **sizes: Any) -> Decoder:
    """The decoder of that name; `sizes` as in `Decoder`.

    Raises:
        UserError: an unknown name, or sizes that this decoder cannot have.
    """
    if name not in KINDS:
        raise UserError(f"no decoder '{name}'; {close_names(name, KINDS)}", USAGE)
    decoder = Decoder(name, tuple(widths), outputs, **sizes)
    merge = decoder.kind.merge
    if merge == "ltae" and len(set(decoder.widths)) > 1:
        raise UserError(
            f"{name} shares one L-TAE: its levels must have one width, found {decoder.widths}", USAGE
        )
    if merge in ("difference", "concatenation") and decoder.dates < 2:
        raise UserError(f"{name} compares two dates, found dates={decoder.dates}", USAGE)
    if decoder.kind.regression and outputs != 1:
        raise UserError(f"{name} predicts one value per pixel, found outputs={outputs}", USAGE)
    return decoder


def count(tree: Tree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _tree(state: nnx.State) -> Tree:
    """A state as nested dictionaries of arrays; layer lists have text keys, as in a restored checkpoint."""

    def with_text_keys(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {str(key): with_text_keys(value) for key, value in tree.items()}

    return with_text_keys(nnx.to_pure_dict(state))


def _filled(state: nnx.State, tree: Tree) -> nnx.State:
    """A copy of the state with the arrays of the tree."""

    def at(path: tuple[Any, ...]) -> Any:
        node: Any = tree
        for key in path:
            node = node[str(key)]
        return node

    return nnx.from_flat_state({path: leaf.replace(at(path)) for path, leaf in nnx.to_flat_state(state)})
