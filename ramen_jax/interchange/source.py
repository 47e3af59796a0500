"""Weights under their official names together with what is known about them. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax import __version__
from ramen_jax.console import UserError
from ramen_jax.inference.encoder import Encoder
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.folder import read_folder
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import TRAPS, Recipe
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

    def encoder_model(self) -> Encoder:
        """The encoder in JAX, computing in float32."""
        ramen = model_of(self.description)
        architecture = replace(ramen.architecture, dtype="float32", remat="none")
        alone = Ramen(architecture, ramen.recipe, with_decoder=False)
        try:
            trees = torch_weights.from_official(self.encoder, alone.shapes)
        except ValueError as error:
            raise UserError(str(error)) from error
        sensors = {name: Sensor.from_dict(entry) for name, entry in self.description["sensors"].items()}
        known = ("recipe", "step", "fingerprints")
        facts = {key: self.description[key] for key in known if key in self.description}
        return Encoder(alone, sensors, facts, *trees)


def read_exported(folder: Path) -> Encoder:
    """The encoder of an exported folder. UserError where it is damaged or does not fit; keys are listed."""
    source = Source(*read_folder(folder))
    try:
        encoder = source.encoder_model()
    except UserError as error:
        raise UserError(f"{folder / 'model.safetensors'}: {error}") from error
    encoder.facts["source"] = str(folder)
    return encoder


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
    recipe = Recipe.from_dict(description["traps"])
    return [
        f"{key} {getattr(recipe, key)} (official: {TRAPS[key].reference})"
        for key in keys
        if getattr(recipe, key) != TRAPS[key].reference
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


def model_of(description: Mapping[str, Any]) -> Ramen:
    """The model that config.json describes, with a decoder if it speaks of one."""
    model = description["model"]
    return Ramen(
        Architecture.from_dict(model), Recipe.from_dict(description["traps"]), "decoder_embed_dim" in model
    )
