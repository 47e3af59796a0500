"""A training that begins with given weights: another training's, or those of an exported folder (an official import).

Parameters and BatchNorm statistics are taken; the optimizer, the step and the data begin anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ramen_jax.console import DATA, UserError
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.folder import is_folder, read_folder
from ramen_jax.interchange.source import model_of
from ramen_jax.parallel.rules import flat_names
from ramen_jax.training import checkpoint, checkpoint_files
from ramen_jax.training.step import State

# Settings of the model that leave no trace in a shape.
UNSEEN = ("num_heads", "decoder_num_heads", "block_eps")
ADDITION = (
    "/modality_embedding/"  # added to the decoder's tokens by recipe `fixed`; official weights have none
)
SHOWN = 40


def require(path: Path) -> None:
    """UserError where `path` holds no weights that a training could begin with; looks at names only."""
    if not is_folder(path):
        checkpoint_files.find(path)


def begin_with(state: State, path: Path, config: ConfigDict) -> tuple[State, str]:
    """The fresh `state` with the weights at `path`, and a sentence about what was taken.

    A decoder that the weights lack keeps its random start; a modality embedding that they lack begins at zero, where
    it changes nothing.

    Raises:
        UserError: no weights there, or some that do not fit the model (all differences are listed).
    """
    weights, model, origin = _read(path)
    problems = [
        f"config.model.{key}: {model[key]} there, {config.model[key]} here"
        for key in UNSEEN
        if key in model and model[key] != config.model[key]
    ]
    fresh: dict[str, Any] = {**flat_names({"params": state.params, "statistics": state.statistics})}
    with_decoder = any(name.startswith("params/decoder/") for name in weights)
    for name in sorted(fresh.keys() | weights.keys()):
        if name not in fresh:
            problems.append(f"{name}: unknown to this model")
        elif name in weights and np.shape(weights[name]) != fresh[name].shape:
            problems.append(f"{name}: {np.shape(weights[name])} there, expected {fresh[name].shape}")
        elif name in weights and not np.isfinite(np.asarray(weights[name], np.float32)).all():
            problems.append(f"{name}: holds numbers that are not finite")
        elif name not in weights and not (
            ADDITION in name or (name.startswith("params/decoder/") and not with_decoder)
        ):
            problems.append(f"{name}: missing there")
    if problems:
        shown = "\n  ".join(problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"config.train.start_from: {path} does not fit this model:\n  {shown}{more}", DATA)

    def taken(key_path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if name in weights:
            host = np.asarray(weights[name], leaf.dtype)
        elif ADDITION in name and with_decoder:
            host = np.zeros(leaf.shape, leaf.dtype)
        else:
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])

    arrays = {"params": state.params, "statistics": state.statistics}
    arrays = jax.tree_util.tree_map_with_path(taken, arrays)
    told = f"starting from the weights of {path} ({origin}), with a fresh optimizer"
    if "decoder" in state.params and not with_decoder:
        told += "; they hold no decoder, which starts at random"
    elif any(ADDITION in name for name in fresh.keys() - weights.keys()):
        told += "; they hold no modality embedding, which starts at zero"
    return state._replace(**arrays), told


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, Any], str]:
    """Arrays by the path of our own parameters, the settings of their model, and what they are."""
    if is_folder(path):
        tensors, description = read_folder(path)
        model = dict(description["model"])
        if not any(name.startswith("decoder.") for name in tensors):
            model = {key: value for key, value in model.items() if not key.startswith("decoder_")}
        try:
            params, statistics = torch_weights.from_official(
                tensors, model_of({**description, "model": model}).shapes
            )
        except ValueError as error:
            raise UserError(f"config.train.start_from: {path}: {error}", DATA) from error
        if "imported_from" in description:
            model.pop("decoder_num_heads", None)  # a guess: the file does not tell
        origin = f"imported from {description['imported_from']}" if "imported_from" in description else ""
    else:
        loaded = checkpoint.load(path)
        params, statistics, model = loaded.params, loaded.statistics, loaded.meta["config"]["model"]
        description, origin = loaded.meta, ""
    origin = origin or f"recipe {description['recipe']}, step {description['step']}"
    return flat_names({"params": params, "statistics": statistics}), model, origin
