"""Weights under their official names together with what is known about them. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ramen_jax import __version__, api
from ramen_jax.config import TRAPS
from ramen_jax.console import DATA, UserError
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.folder import is_folder, read_folder
from ramen_jax.model.mae import RamenMAE
from ramen_jax.model.temporal import BatchStatistic
from ramen_jax.sensors import Sensor

MODEL_KEYS = ("embed_dim", "depth", "num_heads", "mlp_ratio", "block_eps")
DECODER_KEYS = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "mask_ratio")


@dataclass
class Source:
    """Weights under their official names, and what is known about them. `tensors` may hold a decoder."""

    tensors: dict[str, np.ndarray]
    description: dict[str, Any]

    @property
    def encoder(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.tensors.items() if name.startswith("encoder.")}

    def model(self) -> api.Model:
        """The encoder in JAX, computing in float32."""
        config = ConfigDict({**self.description["model"], "dtype": "float32", "remat": "none"})
        traps = ConfigDict(self.description["traps"])
        _, params, statistics = api.split_encoder(config, traps)
        shapes = ({"encoder": nnx.to_pure_dict(params)}, {"encoder": nnx.to_pure_dict(statistics)})
        try:
            trees = torch_weights.from_official(self.encoder, shapes)
        except ValueError as error:
            raise UserError(str(error)) from error
        sensors = {name: Sensor.from_dict(entry) for name, entry in self.description["sensors"].items()}
        return api.Model(config, traps, sensors, {}, *trees)


def read_checkpoint(path: Path, decoder: bool) -> Source:
    """A training's checkpoint, or a folder written by this command.

    Raises:
        UserError: no checkpoint, or a decoder that has no official form (`fixed` adds a modality embedding to it).
    """
    if is_folder(path):
        source = Source(*read_folder(path))
        if not decoder:
            source.tensors = source.encoder
        elif source.tensors.keys() == source.encoder.keys():
            raise UserError(f"{path} holds no decoder", DATA)
        return source
    from ramen_jax.training import checkpoint

    loaded = checkpoint.load(path)
    if decoder and "modality_embedding" in loaded.params.get("decoder", {}):
        raise UserError(
            f"{path}: its decoder adds a learnt embedding of each modality (traps.modality_embedding is 'bands'), "
            "for which the official decoder has no place; export the encoder alone, without --decoder",
            DATA,
        )
    sides = ("encoder", "decoder") if decoder else ("encoder",)
    params = {side: loaded.params[side] for side in sides}
    try:
        tensors = torch_weights.to_official(params, loaded.statistics)
    except ValueError as error:
        raise UserError(f"{path}: {error}", DATA) from error
    meta, config = loaded.meta, loaded.meta["config"]
    sensors = {
        f"{corpus}/{name}": entry
        for corpus, entries in meta["sensors"].items()
        for name, entry in entries.items()
    }
    facts = {
        "recipe": config["recipe"],
        "step": meta["step"],
        "fingerprints": meta["fingerprints"],
        "target_gsds": {entry["name"]: list(entry["target_gsds"]) for entry in config["corpora"]},
    }
    return Source(tensors, describe(config["model"], config["traps"], sensors, facts))


def describe(
    model: Mapping[str, Any], traps: Mapping[str, Any], sensors: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json: everything that the weights do not say. The PyTorch file reads the first five entries."""
    known: dict[str, Any] = {key: model[key] for key in (*MODEL_KEYS, *DECODER_KEYS) if key in model}
    return {
        "model": {**known, "dtype": model.get("dtype", "float32"), "remat": "none"},
        "sampling": traps["sampling"],
        "missing": traps["missing"],
        "encodings": traps["encodings"],
        "sensors": dict(sensors),
        "traps": dict(traps),
        **facts,
        "written_by": f"ramen_jax {__version__}",
    }


def departures(description: Mapping[str, Any], decoder: bool) -> list[str]:
    """What these weights were trained to compute otherwise than the official code does, as sentences' parts."""
    keys = ("sampling", "missing", "time_mask", "encodings", *(("target",) if decoder else ()))
    return [
        f"{key} {description['traps'][key]} (official: {TRAPS[key][0]})"
        for key in keys
        if description["traps"].get(key, TRAPS[key][0]) != TRAPS[key][0]
    ]


def decoder_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the shapes tell about a decoder. The number of heads leaves no trace; the official default stands in."""
    telling = ("decoder.mask_token", "decoder.norm.weight", "decoder.decoder_embed.bias")
    width = next((tensors[name].shape[-1] for name in telling if name in tensors and tensors[name].ndim), 0)
    if not width:
        raise ValueError(f"its decoder has no width: {', '.join(telling)} are missing")
    blocks = {name.split(".")[2] for name in tensors if name.startswith("decoder.blocks.")}
    heads = next((heads for heads in (16, 8, 4, 2) if width % (2 * heads) == 0), 1)
    return {
        "decoder_embed_dim": width,
        "decoder_depth": len(blocks),
        "decoder_num_heads": heads,
        "mask_ratio": 0.75,
    }


def template(description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of (parameters, statistics) of the model that config.json describes, with its decoder if it has one."""
    config, traps = ConfigDict(description["model"]), ConfigDict(description["traps"])
    if "decoder_embed_dim" not in config:
        _, params, statistics = api.split_encoder(config, traps)
        return {"encoder": nnx.to_pure_dict(params)}, {"encoder": nnx.to_pure_dict(statistics)}
    shapes = nnx.eval_shape(lambda: RamenMAE(config, traps, rngs=nnx.Rngs(0)))
    _, *states = nnx.split(shapes, nnx.Param, BatchStatistic)
    return nnx.to_pure_dict(states[0]), nnx.to_pure_dict(states[1])
