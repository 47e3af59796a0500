"""One table between our parameters and the official names, used in both directions.

`to_official` and `from_official` are exact: every tensor is copied, transposed or sliced, never computed, so a
round trip returns the same bits. Names, layouts and BatchNorm buffers follow the official state dict
(`encoder.*`, `decoder.*`). A parameter that the official model does not have (the decoder's modality embedding, part of
recipe `fixed`) is an error: without it the decoder would compute something else.

Parameters are nested dicts of numpy arrays here, as `nnx.to_pure_dict` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ramen_jax.model.projector import ELEVATION, RADAR
from ramen_jax.model.resampler import EXPERTS

Tree = dict[str, Any]
STATISTICS = ("mean", "var", "batches")


@dataclass(frozen=True)
class Entry:
    """One official tensor: where it lives here, which slice of our array it is, how its axes differ."""

    official: str
    path: tuple[str, ...]
    index: int | None = None
    # same | transpose (Dense) | conv1x1 (Dense stored [out, in, 1, 1]) | token ([1, 1, D]) | count (int64)
    layout: str = "same"

    @property
    def is_statistic(self) -> bool:
        return self.path[-1] in STATISTICS and "ltae" in self.path


def key_table(depth: int, decoder_depth: int | None) -> list[Entry]:
    """Every official tensor of a model; `decoder_depth` None leaves the decoder out (encoder alone)."""
    entries = list(_encoder(depth))
    if decoder_depth is not None:
        entries += _decoder(decoder_depth)
    return entries


def to_official(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters and BatchNorm statistics under the official names, float32 (the batch counter int64).

    Raises:
        ValueError: a parameter the official model has no name for, or one that is missing; all are listed.
    """
    tree = {"params": params, "statistics": statistics}
    table = key_table(*_depths(params))
    unused = {"/".join(path) for part in tree.values() for path in _paths(part)}
    result: dict[str, np.ndarray] = {}
    missing = []
    for entry in table:
        array = _get(tree["statistics" if entry.is_statistic else "params"], entry.path)
        if array is None:
            missing.append("/".join(entry.path))
            continue
        unused.discard("/".join(entry.path))
        result[entry.official] = _to_layout(
            array if entry.index is None else array[entry.index], entry.layout
        )
    problems = [f"missing: {path}" for path in missing]
    problems += [f"no official name for: {path}" for path in sorted(unused)]
    if problems:
        raise ValueError("these parameters cannot be given official names:\n  " + "\n  ".join(problems))
    return result


def from_official(tensors: Mapping[str, np.ndarray], template: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Official tensors as (params, statistics) shaped like `template`, which is left unchanged.

    The template is a model's (params, statistics), shapes are enough. When the tensors hold no decoder, the
    template must not either.

    Raises:
        ValueError: unknown, missing or misshaped keys; all are listed.
    """
    params, statistics = template
    table = {entry.official: entry for entry in key_table(*_depths(params))}
    problems = [f"unknown key: {name}" for name in sorted(set(tensors) - set(table))]
    problems += [f"missing key: {name}" for name in sorted(set(table) - set(tensors))]
    result = {"params": _empty(params), "statistics": _empty(statistics)}
    for name, entry in table.items():
        if name not in tensors:
            continue
        target = _get(result["statistics" if entry.is_statistic else "params"], entry.path)
        if target is None:
            problems.append(f"the model has no parameter {'/'.join(entry.path)} for key {name}")
            continue
        array = _from_layout(np.asarray(tensors[name]), entry.layout)
        expected = target.shape if entry.index is None else target.shape[1:]
        if array is None or array.shape != expected:
            found = tuple(np.asarray(tensors[name]).shape)
            problems.append(
                f"wrong shape: {name} is {found}, expected {_official_shape(expected, entry.layout)}"
            )
            continue
        target[... if entry.index is None else entry.index] = array
    if problems:
        raise ValueError("these weights do not fit the model:\n  " + "\n  ".join(problems))
    return result["params"], result["statistics"]


def prefixed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names from `encoder.` or `decoder.` on.

    The published checkpoint holds the encoder's tensors without prefix; the official training puts `model.` before all.
    """
    if any(name.startswith(("model.encoder.", "model.decoder.")) for name in tensors):
        tensors = {name.removeprefix("model."): array for name, array in tensors.items()}
    if any(name.startswith(("encoder.", "decoder.")) for name in tensors):
        return dict(tensors)
    return {f"encoder.{name}": array for name, array in tensors.items()}


def _encoder(depth: int) -> Iterator[Entry]:
    yield Entry("encoder.cls_token", ("encoder", "cls_token"), layout="token")
    yield from _projector("encoder")
    yield from _resampler("encoder")
    yield from _ltae()
    yield from _norm("encoder.in_norm", ("encoder", "input_norm"))
    for layer in range(depth):
        yield from _block(f"encoder.blocks.{layer}", ("encoder", "transformer", "blocks"), layer)
    yield from _norm("encoder.norm", ("encoder", "norm"))


def _decoder(depth: int) -> Iterator[Entry]:
    yield Entry("decoder.mask_token", ("decoder", "mask_token"), layout="token")
    yield from _dense("decoder.decoder_embed", ("decoder", "embed"))
    yield from _projector("decoder")
    yield from _resampler("decoder")
    yield from _block("decoder.temporal_block", ("decoder", "temporal_block"))
    yield from _norm("decoder.temporal_norm", ("decoder", "temporal_norm"))
    for layer in range(depth):
        yield from _block(f"decoder.blocks.{layer}", ("decoder", "transformer", "blocks"), layer)
    yield from _norm("decoder.norm", ("decoder", "norm"))


def _projector(side: str) -> Iterator[Entry]:
    path = (side, "projector")
    for official, ours, kinds in (
        ("spectral_projector", "optical", ()),
        ("radar_projector", "radar", RADAR),
        ("dem_projector", "elevation", ELEVATION),
    ):
        for row, kind in enumerate(kinds):
            yield Entry(f"{side}.{official}.{kind}_param", (*path, f"{ours}_codes"), row)
        yield from _dense(f"{side}.{official}.mlp.0", (*path, ours, "inner"))
        yield from _dense(f"{side}.{official}.mlp.2", (*path, ours, "outer"))
        yield from _norm(f"{side}.{official}.mlp.3", (*path, ours, "norm"))


def _resampler(side: str) -> Iterator[Entry]:
    path = (side, "resampler")
    yield Entry(f"{side}.resampler.temperature", (*path, "temperature"))
    for n in range(EXPERTS):
        yield Entry(f"{side}.resampler.experts.{n}.weight", (*path, "kernels"), n, "conv1x1")
        yield Entry(f"{side}.resampler.experts.{n}.bias", (*path, "biases"), n)
    yield from _dense(f"{side}.resampler.mlp.0", (*path, "gate_inner"))
    yield from _dense(f"{side}.resampler.mlp.2", (*path, "gate_outer"))


def _ltae() -> Iterator[Entry]:
    official, path = "encoder.ltae", ("encoder", "ltae")
    yield from _dense(f"{official}.inconv.0", (*path, "input"))
    yield from _batch_norm(f"{official}.inconv.1", (*path, "input_norm"))
    yield Entry(f"{official}.attention_heads.Q", (*path, "query"))
    yield from _dense(f"{official}.attention_heads.fc1_k", (*path, "key"))
    yield Entry(f"{official}.in_norm.weight", (*path, "group_scale"))
    yield Entry(f"{official}.in_norm.bias", (*path, "group_bias"))
    for n in range(3):
        yield from _dense(f"{official}.mlp.{3 * n}", (*path, "layers", str(n)))
        yield from _batch_norm(f"{official}.mlp.{3 * n + 1}", (*path, "norms", str(n)))


def _dense(official: str, path: tuple[str, ...], index: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "kernel"), index, "transpose")
    yield Entry(f"{official}.bias", (*path, "bias"), index)


def _norm(official: str, path: tuple[str, ...], index: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "scale"), index)
    yield Entry(f"{official}.bias", (*path, "bias"), index)


def _batch_norm(official: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _norm(official, path)
    yield Entry(f"{official}.running_mean", (*path, "mean"))
    yield Entry(f"{official}.running_var", (*path, "var"))
    yield Entry(f"{official}.num_batches_tracked", (*path, "batches"), layout="count")


def _block(official: str, path: tuple[str, ...], index: int | None = None) -> Iterator[Entry]:
    yield from _norm(f"{official}.norm1", (*path, "attention_norm"), index)
    yield from _dense(f"{official}.attn.qkv", (*path, "qkv"), index)
    yield from _dense(f"{official}.attn.proj", (*path, "project"), index)
    yield from _norm(f"{official}.norm2", (*path, "mlp_norm"), index)
    yield from _dense(f"{official}.mlp.fc1", (*path, "mlp_inner"), index)
    yield from _dense(f"{official}.mlp.fc2", (*path, "mlp_outer"), index)


def _to_layout(array: Any, layout: str) -> np.ndarray:
    array = np.asarray(array)
    if layout == "transpose":
        return np.ascontiguousarray(array.T)
    if layout == "conv1x1":
        return np.ascontiguousarray(array.T)[:, :, None, None]
    if layout == "token":
        return array[None, None]
    return array.astype(np.int64) if layout == "count" else array


def _from_layout(array: np.ndarray, layout: str) -> np.ndarray | None:
    """The inverse of `_to_layout`; None when the tensor has other axes than that layout."""
    if layout == "transpose":
        return array.T if array.ndim == 2 else None
    if layout == "conv1x1":
        return array[:, :, 0, 0].T if array.ndim == 4 and array.shape[2:] == (1, 1) else None
    if layout == "token":
        return array[0, 0] if array.ndim == 3 and array.shape[:2] == (1, 1) else None
    return array


def _official_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return _to_layout(np.empty(shape, np.bool_), layout).shape


def _depths(params: Mapping[str, Any]) -> tuple[int, int | None]:
    def depth(side: str) -> int:
        return _get(params, (side, "transformer", "blocks", "qkv", "bias")).shape[0]

    return depth("encoder"), depth("decoder") if "decoder" in params else None


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        # Lists of layers have integer keys in a fresh state and string keys in a restored checkpoint.
        tree = tree.get(key, tree.get(int(key)) if key.isdigit() else None)
    return tree


def _paths(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(tree, Mapping):
        yield path
        return
    for key, value in tree.items():
        yield from _paths(value, (*path, str(key)))


def _empty(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _empty(value) for key, value in tree.items()}
    return np.empty(tree.shape, tree.dtype)
