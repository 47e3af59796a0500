"""The benchmark's weight names and layouts for each decoder, and ours: one table, read in both directions.

    params, statistics = from_official(decoder, tensors)
    tensors = to_official(decoder, params, statistics)

`tensors` is the state dict of the benchmark's decoder as numpy arrays, `num_batches_tracked` included. The names of
its frozen encoder (`encoder.*`) are passed over, except for the U-Nets, where they belong to the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea.decoders.decoder import Decoder, Tree
from ramen_jax.evaluation.pangaea.decoders.upernet import POOLS, SCALES

# How our axes become those of PyTorch.
AXES = {"dense": (1, 0), "conv": (3, 2, 0, 1), "double": (0, 3, 1, 2)}


class Entry(NamedTuple):
    """An official name, our path, and how the official layout differs from ours."""

    official: str
    path: tuple[str, ...]
    layout: str = "same"


def table(decoder: Decoder) -> list[Entry]:
    """Every tensor of a decoder."""
    kind = decoder.kind
    head = {"upernet": _upernet, "linear": _linear, "classification": _classification, "unet": _unet}[
        kind.head
    ]
    entries = list(head(decoder))
    if kind.head != "unet" and kind.merge == "linear":
        entries += [
            Entry("tmap.weight", ("time", "weight"), "row"),
            Entry("tmap.bias", ("time", "bias"), "row"),
        ]
    if kind.merge == "ltae":
        entries += _ltae()
    return entries


def from_official(decoder: Decoder, tensors: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    """Our parameters and statistics from the benchmark's state dict.

    Raises:
        UserError: names that are missing, unknown or of another shape; all of them are listed.
    """
    entries = table(decoder)
    shapes = dict(_leaves(decoder.shapes()[0])) | dict(_leaves(decoder.shapes()[1]))
    wanted = {entry.official for entry in entries}
    problems = [f"{name} is missing" for name in sorted(wanted - set(tensors))]
    for name in sorted(set(tensors) - wanted):
        if decoder.kind.head == "unet" or not name.startswith("encoder."):
            problems.append(f"{name} is unknown")
    found: dict[tuple[str, ...], np.ndarray] = {}
    for entry in entries:
        if entry.official not in tensors:
            continue
        expected = _outward(np.empty(shapes[entry.path].shape, np.bool_), entry.layout).shape
        array = np.asarray(tensors[entry.official])
        if array.shape != expected:
            problems.append(f"{entry.official} is {array.shape}, expected {expected}")
            continue
        found[entry.path] = _inward(array, entry.layout).astype(shapes[entry.path].dtype)
    if problems:
        raise UserError(f"weights that do not fit {decoder.name}: " + "; ".join(problems))
    params, statistics = decoder.shapes()
    return _filled(params, found), _filled(statistics, found)


def to_official(decoder: Decoder, params: Tree, statistics: Tree) -> dict[str, np.ndarray]:
    """The benchmark's state dict, without its encoder (a U-Net's is part of the decoder)."""
    arrays = dict(_leaves(params)) | dict(_leaves(statistics))
    return {
        entry.official: _outward(np.asarray(arrays[entry.path]), entry.layout) for entry in table(decoder)
    }


def _upernet(decoder: Decoder) -> Iterator[Entry]:
    levels = len(decoder.widths)
    for i in range(levels):
        neck = ("head", "necks", str(i))
        scale = SCALES[4 * i // levels]
        if scale > 1:
            yield from _weights(f"neck.ops.{i}.0", (*neck, "doublings", "0"), "double")
        if scale == SCALES[0]:
            yield from _batch_norm(f"neck.ops.{i}.1", (*neck, "norms", "0"))
            yield from _weights(f"neck.ops.{i}.3", (*neck, "doublings", "1"), "double")
    for i in range(len(POOLS)):
        yield from _conv_norm(f"psp_modules.{i}", ("head", "pools", str(i)), "conv1", first=1)
    yield from _conv_norm("bottleneck", ("head", "top"), "conv")
    for i in range(levels - 1):
        yield from _conv_norm(f"lateral_convs.{i}", ("head", "laterals", str(i)), "conv1")
        yield from _conv_norm(f"fpn_convs.{i}", ("head", "outputs", str(i)), "conv")
    yield from _conv_norm("fpn_bottleneck", ("head", "fuse"), "conv")
    name = "conv_reg" if decoder.kind.regression else "conv_seg"
    yield from _weights(name, ("head", "head"), "conv1")


def _linear(decoder: Decoder) -> Iterator[Entry]:
    del decoder
    yield from _weights("linear_head", ("head", "head"), "conv1")


def _classification(decoder: Decoder) -> Iterator[Entry]:
    del decoder
    yield from _weights("linear_head.2", ("head", "head"), "dense")


def _unet(decoder: Decoder) -> Iterator[Entry]:
    if decoder.kind.merge == "channels":
        yield from _double_conv("encoder.time_merging.conv", ("head", "dates_to_bands"))
    yield from _double_conv("encoder.in_conv.conv.conv", ("head", "first"))
    steps = len(decoder.topology)
    for i in range(steps):
        yield from _double_conv(
            f"encoder.encoder.down_seq.down{i + 1}.mpconv.1.conv", ("head", "down", str(i))
        )
    for i in range(steps):
        official, path = f"decoder.up_seq.up{steps - i}", ("head", "up", str(i))
        yield from _weights(f"{official}.up", (*path, "double"), "double")
        yield from _double_conv(f"{official}.conv.conv", (*path, "conv"))
    yield from _weights("conv_seg.conv", ("head", "head"), "conv1")


def _ltae() -> Iterator[Entry]:
    yield from _norm("tmap.in_norm", ("time", "input_norm"))
    yield from _weights("tmap.inconv", ("time", "input"), "conv1d")
    yield Entry("tmap.attention_heads.Q", ("time", "query"))
    yield from _weights("tmap.attention_heads.fc1_k", ("time", "key"), "dense")
    yield from _weights("tmap.mlp.0", ("time", "output"), "dense")
    yield from _batch_norm("tmap.mlp.1", ("time", "batch_norm"))
    yield from _norm("tmap.out_norm", ("time", "output_norm"))


def _double_conv(official: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _conv_norm(official, (*path, "first"), "conv")
    yield from _conv_norm(official, (*path, "second"), "conv", first=3)


def _conv_norm(official: str, path: tuple[str, ...], layout: str, first: int = 0) -> Iterator[Entry]:
    yield from _weights(f"{official}.{first}", (*path, "conv"), layout)
    yield from _batch_norm(f"{official}.{first + 1}", (*path, "norm"))


def _weights(official: str, path: tuple[str, ...], layout: str) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "kernel"), layout)
    yield Entry(f"{official}.bias", (*path, "bias"))


def _norm(official: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "scale"))
    yield Entry(f"{official}.bias", (*path, "bias"))


def _batch_norm(official: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _norm(official, path)
    yield Entry(f"{official}.running_mean", (*path, "mean"))
    yield Entry(f"{official}.running_var", (*path, "var"))
    yield Entry(f"{official}.num_batches_tracked", (*path, "batches"), "count")


def _outward(array: np.ndarray, layout: str) -> np.ndarray:
    """Our layout -> PyTorch's."""
    if layout in AXES:
        return np.ascontiguousarray(array.transpose(AXES[layout]))
    if layout == "conv1":
        return np.ascontiguousarray(array.T)[:, :, None, None]
    if layout == "conv1d":
        return np.ascontiguousarray(array.T)[:, :, None]
    if layout == "row":
        return array[None]
    return array.astype(np.int64) if layout == "count" else array


def _inward(array: np.ndarray, layout: str) -> np.ndarray:
    """PyTorch's layout -> ours; the inverse of `_outward`."""
    if layout in AXES:
        return array.transpose(np.argsort(AXES[layout]))
    if layout == "conv1":
        return array[:, :, 0, 0].T
    if layout == "conv1d":
        return array[:, :, 0].T
    return array[0] if layout == "row" else array


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*path, key))


def _filled(tree: Any, found: Mapping[tuple[str, ...], np.ndarray], path: tuple[str, ...] = ()) -> Any:
    if not isinstance(tree, Mapping):
        return jax.numpy.asarray(found[path])
    return {key: _filled(value, found, (*path, key)) for key, value in tree.items()}
